package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

// service is the protocol's edge: it translates messages and errors.
type service struct{ s *Supervisor }

// gated runs an operation that an upgrade must wait for.
func gated[T any](g *service, operation func() (*T, error)) (*T, error) {
	leave, err := g.s.gate.enter()
	if err != nil {
		return nil, wire.Encode(err)
	}
	defer leave()
	result, err := operation()
	if err != nil {
		return nil, wire.Encode(err)
	}
	return result, nil
}

// on runs an operation on one container.
func (g *service) on(id string, operation func(c *container) error) (*wire.Empty, error) {
	return gated(g, func() (*wire.Empty, error) {
		c, err := g.s.find(id)
		if err == nil {
			err = operation(c)
		}
		return &wire.Empty{}, err
	})
}

func containerName(id string) string { return "container/" + id }

func execName(containerID, id string) string { return "exec/" + containerID + "/" + id }

func durationOf(nano int64) time.Duration {
	const fallback = 2 * time.Minute
	if nano <= 0 {
		return fallback
	}
	return time.Duration(nano)
}

// Hello opens a session and ends what others left.
func (g *service) Hello(_ context.Context, req *wire.HelloRequest) (*wire.HelloResponse, error) {
	return gated(g, func() (*wire.HelloResponse, error) { //nolint:contextcheck // ending what others left has its own time
		g.s.mu.Lock()
		changed := g.s.session != req.Session
		g.s.session = req.Session
		var list []*container
		for _, c := range g.s.containers {
			list = append(list, c)
		}
		g.s.mu.Unlock()
		g.s.dropped.forget(req.Session)
		if changed {
			g.s.staging.clear()
		}
		resp := &wire.HelloResponse{
			Version: g.s.cfg.Version, Pid: int32(os.Getpid()), Generation: g.s.generation, Protocol: wire.Protocol,
		}
		for _, c := range list {
			if !c.isReady() {
				continue
			}
			c.endStrangers(req.Session)
			if c.init.running() && !c.init.lost() {
				resp.Containers = append(resp.Containers, &wire.Held{Id: c.id, Pid: int32(c.init.pid), Started: c.init.started})
			}
		}
		return resp, nil
	})
}

// Settle ends the wait for pidfds.
func (g *service) Settle(context.Context, *wire.SettleRequest) (*wire.Empty, error) {
	return gated(g, func() (*wire.Empty, error) {
		g.s.settle()
		return &wire.Empty{}, nil
	})
}

// Start runs a container.
func (g *service) Start(ctx context.Context, req *wire.StartRequest) (*wire.StartResponse, error) {
	return gated(g, func() (*wire.StartResponse, error) {
		h := req.GetHandler()
		rec, err := g.s.start(ctx, record{
			ID: req.Id, SandboxID: req.SandboxId, Bundle: req.Bundle,
			Handler: ociruntime.Handler{
				Name: h.GetName(), Type: h.GetType(), Path: h.GetPath(), Root: h.GetRoot(),
				SystemdCgroup: h.GetSystemdCgroup(), Options: h.GetOptions(),
			},
			Terminal: req.Terminal, Stdin: req.Stdin, StdinOnce: req.StdinOnce,
			LogPath: req.LogPath, LogDirectory: req.LogDirectory, LogLimit: max(0, req.LogLimit),
			Cgroup: req.CgroupPath, Deadline: durationOf(req.DeadlineNano),
			Restore: restoreOf(req.Restore), Label: req.Label, Sandboxed: req.Sandboxed,
		})
		return &wire.StartResponse{Pid: int32(rec.PID), AtNano: rec.StartedNano}, err
	})
}

// StartInfra starts the process that holds a PID namespace.
func (g *service) StartInfra(ctx context.Context, req *wire.StartInfraRequest) (*wire.StartResponse, error) {
	return gated(g, func() (*wire.StartResponse, error) {
		rec, err := g.s.startInfra(ctx, req)
		return &wire.StartResponse{Pid: int32(rec.PID), AtNano: rec.StartedNano}, err
	})
}

// Logs returns counters over the logs of all containers.
func (g *service) Logs(context.Context, *wire.Empty) (*wire.LogsResponse, error) {
	return gated(g, func() (*wire.LogsResponse, error) {
		t := g.s.turns.Totals()
		return &wire.LogsResponse{Written: t.Written, Dropped: t.Dropped, ThrottledNano: uint64(t.Throttled)}, nil
	})
}

// Kill signals the init process.
func (g *service) Kill(ctx context.Context, req *wire.KillRequest) (*wire.Empty, error) {
	return g.on(req.Id, func(c *container) error { return c.kill(ctx, syscall.Signal(req.Signal)) })
}

// KillAll kills every process of the container.
func (g *service) KillAll(ctx context.Context, req *wire.Container) (*wire.Empty, error) {
	return g.on(req.Id, func(c *container) error { return c.killAll(ctx) })
}

// Delete makes a container gone.
func (g *service) Delete(ctx context.Context, req *wire.Container) (*wire.Empty, error) {
	return gated(g, func() (*wire.Empty, error) {
		c, err := g.s.find(req.Id)
		if err != nil {
			return &wire.Empty{}, nil // it is gone, as asked
		}
		c.abandon()
		if err := c.acquire(ctx); err != nil {
			return nil, err
		}
		defer c.release() // waiters find that it is gone
		if c.isGone() {
			return &wire.Empty{}, nil
		}
		return &wire.Empty{}, c.delete(ctx)
	})
}

// List answers without waiting for any operation.
func (g *service) List(context.Context, *wire.Empty) (*wire.ListResponse, error) {
	g.s.mu.Lock()
	list := make([]*container, 0, len(g.s.containers))
	for _, c := range g.s.containers {
		list = append(list, c)
	}
	g.s.mu.Unlock()
	resp := &wire.ListResponse{}
	for _, c := range list {
		if c.isReady() && !c.startFailed() {
			resp.Containers = append(resp.Containers, c.state())
		}
	}
	return resp, nil
}

// NextExits waits for exits behind the cursor.
func (g *service) NextExits(ctx context.Context, req *wire.NextExitsRequest) (*wire.NextExitsResponse, error) {
	for cursor := req.Cursor; ; {
		list, next, more := g.s.exitsAfter(cursor)
		resp := &wire.NextExitsResponse{Cursor: next}
		for _, c := range list {
			if m := c.exitMessage(); m != nil {
				resp.Exits = append(resp.Exits, m)
			}
		}
		if len(resp.Exits) > 0 {
			return resp, nil
		}
		select {
		case <-more:
			cursor = next
		case <-ctx.Done():
			return nil, wire.Encode(ctx.Err())
		}
	}
}

// Update changes the limits of a container.
func (g *service) Update(ctx context.Context, req *wire.UpdateRequest) (*wire.Empty, error) {
	return g.on(req.Id, func(c *container) error {
		var resources specs.LinuxResources
		if err := json.Unmarshal(req.Resources, &resources); err != nil {
			return fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err := c.acquire(ctx); err != nil {
			return err
		}
		defer c.release()
		return c.update(ctx, req.Resources)
	})
}

// update changes the limits. Preconditions: the caller holds the token.
func (c *container) update(ctx context.Context, resources []byte) error {
	if err := c.running(); err != nil {
		return err
	}
	rec := c.record()
	if rec.Infra {
		return fmt.Errorf("%s is an infra process: %w", c.id, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rec.Deadline)
	defer cancel()
	return c.driver.update(ctx, resources)
}

// ReopenLog makes a new log file. It does not hold the token of the container's operations: the
// disk of the log may hang, and a container is deleted all the same.
func (g *service) ReopenLog(ctx context.Context, req *wire.Container) (*wire.Empty, error) {
	return g.on(req.Id, func(c *container) error {
		c.mu.Lock()
		io := c.io
		c.mu.Unlock()
		if io == nil {
			return notFound(c.id)
		}
		ctx, cancel := context.WithTimeout(ctx, reopenTimeout)
		defer cancel()
		return io.writer.Reopen(ctx, c.logReopened)
	})
}

// Upgrade executes another program in place.
func (g *service) Upgrade(ctx context.Context, req *wire.UpgradeRequest) (*wire.Empty, error) {
	return &wire.Empty{}, wire.Encode(g.s.upgrade(ctx, req.Binary))
}

// Shutdown ends a supervisor without containers.
func (g *service) Shutdown(context.Context, *wire.Empty) (*wire.Empty, error) {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	if n := len(g.s.containers); n > 0 {
		return nil, wire.Encode(fmt.Errorf("supervisor looks after %d containers: %w", n, errdefs.ErrFailedPrecondition))
	}
	g.s.stop()
	return &wire.Empty{}, nil
}
