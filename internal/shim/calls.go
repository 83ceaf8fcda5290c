package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/shim/wire"
)

// runtimeMargin is what a call may take on top of the OCI runtime's own deadline:
// the deadline, the clean-up after it, and the answer.
const runtimeMargin = 45 * time.Second

// Start runs the container of a bundle. Nil means that its init process has been
// started by the OCI runtime, output is being logged and its exit will be
// reported, even if it has ended by now. An error means that nothing of it is left.
// A second Start of the same ID joins the first, or returns its outcome.
func (c *Client) Start(ctx context.Context, req StartRequest) (Started, error) {
	if req.Deadline <= 0 {
		req.Deadline = DefaultDeadline
	}
	ctx, cancel := context.WithTimeout(ctx, req.Deadline+runtimeMargin)
	defer cancel()
	resp, err := invoke(ctx, c, "start container "+req.ID, func(ctx context.Context, l *link) (*wire.StartResponse, error) {
		return l.shim.Start(ctx, &wire.StartRequest{
			Id: req.ID, SandboxId: req.SandboxID, Bundle: req.Bundle, Handler: &wire.Handler{
				Name: req.Handler.Name, Type: req.Handler.Type, Path: req.Handler.Path, Root: req.Handler.Root,
				SystemdCgroup: req.Handler.SystemdCgroup, Options: req.Handler.Options,
			},
			Terminal: req.Terminal, Stdin: req.Stdin, StdinOnce: req.StdinOnce,
			LogPath: req.LogPath, LogDirectory: req.LogDirectory, LogLimit: req.LogLimit,
			CgroupPath: req.CgroupPath, DeadlineNano: int64(req.Deadline),
			Restore: req.Restore.onWire(), Label: req.Label, Sandboxed: req.Sandboxed,
		})
	})
	if err != nil {
		return Started{}, err
	}
	c.keepContainer(ctx, req.ID)
	return Started{PID: int(resp.Pid), At: time.Unix(0, resp.AtNano)}, nil
}

// StartInfra starts the process that holds a pod's PID namespace: a built-in
// program, first in a new PID namespace, in an empty root, as the user nobody and without
// capabilities. It is killed and forgotten with Delete, and its exit is reported.
func (c *Client) StartInfra(ctx context.Context, req InfraRequest) (int, error) {
	resp, err := invoke(ctx, c, "start infra process "+req.ID, func(ctx context.Context, l *link) (*wire.StartResponse, error) {
		return l.shim.StartInfra(ctx, &wire.StartInfraRequest{
			Id: req.ID, NetNs: req.NetNS, IpcNs: req.IPC, UtsNs: req.UTS, CgroupPath: req.CgroupPath,
			UserNs: req.User, Uid: req.UID, Gid: req.GID, MountLabel: req.MountLabel, ProcessLabel: req.ProcessLabel,
			ApparmorProfile: req.AppArmor,
		})
	})
	if err != nil {
		return 0, err
	}
	c.keepContainer(ctx, req.ID)
	return int(resp.Pid), nil
}

// keep fetches the descriptors to keep of a process. A failure costs nothing
// while the supervisor lives, so it is logged and does not fail the start.
func (c *Client) keep(ctx context.Context, name string) {
	l, err := c.current(ctx)
	if err == nil {
		if err = c.kept.fetch(l.fds, name); lostLink(err) {
			l.close() // the next link fetches what is missing
		}
	}
	if err != nil {
		c.opts.Log.Warn("keep descriptors", "of", name, "error", err)
	}
}

// keepContainer is keep for a container, whose descriptors the service manager is to
// have too before anybody relies on them.
func (c *Client) keepContainer(ctx context.Context, id string) {
	c.keep(ctx, containerName(id))
	c.kept.fdStore.await(ctx, id)
}

// Kill sends a signal to the container's init process. A container that has
// ended is ErrNotFound, as is an unknown one.
func (c *Client) Kill(ctx context.Context, id string, sig syscall.Signal) error {
	_, err := invoke(ctx, c, fmt.Sprintf("send %v to container %s", sig, id), func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.Kill(ctx, &wire.KillRequest{Id: id, Signal: int32(sig)})
	})
	return err
}

// KillAll sends SIGKILL to every process in the container's cgroup. Nil means
// that none is left, also when there was none.
func (c *Client) KillAll(ctx context.Context, id string) error {
	_, err := invoke(ctx, c, "kill all processes of container "+id, func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.KillAll(ctx, &wire.Container{Id: id})
	})
	return err
}

// Delete removes the container from the OCI runtime and all that the supervisor
// keeps of it; what still runs is killed. The log file stays. An unknown ID is OK.
func (c *Client) Delete(ctx context.Context, id string) error {
	_, err := invoke(ctx, c, "delete container "+id, func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.Delete(ctx, &wire.Container{Id: id})
	})
	if err == nil {
		c.kept.drop(containerName(id))
	}
	return err
}

// List returns every container and infra process that was started and not deleted.
func (c *Client) List(ctx context.Context) ([]Container, error) {
	resp, err := invoke(ctx, c, "list containers", func(ctx context.Context, l *link) (*wire.ListResponse, error) {
		return l.shim.List(ctx, &wire.Empty{})
	})
	if err != nil {
		return nil, err
	}
	list := make([]Container, 0, len(resp.Containers))
	for _, s := range resp.Containers {
		one := Container{
			ID: s.Id, SandboxID: s.SandboxId, PID: int(s.Pid), Running: s.Running,
			Started: time.Unix(0, s.StartedNano), DroppedLogBytes: s.DroppedLogBytes,
		}
		if s.Exit != nil {
			exit := fromWire(s.Exit)
			one.Exit = &exit
		}
		list = append(list, one)
	}
	return list, nil
}

// Update changes the resource limits of a running container.
func (c *Client) Update(ctx context.Context, id string, resources *specs.LinuxResources) error {
	body, err := json.Marshal(resources)
	if err != nil {
		return fmt.Errorf("update container %s: encode resources: %w", id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultDeadline+runtimeMargin)
	defer cancel()
	_, err = invoke(ctx, c, "update container "+id, func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.Update(ctx, &wire.UpdateRequest{Id: id, Resources: body})
	})
	return err
}

// ReopenLog makes a new log file at the container's log path and writes there from
// now on; no line is lost. On an error the old file is kept, and no new one exists.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := invoke(ctx, c, "reopen log of container "+id, func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.ReopenLog(ctx, &wire.Container{Id: id})
	})
	return err
}

// Resize sets the size of the container's terminal.
func (c *Client) Resize(ctx context.Context, id string, columns, rows uint16) error {
	return c.resize(ctx, id, "", columns, rows)
}

func (c *Client) resize(ctx context.Context, id, execID string, columns, rows uint16) error {
	_, err := invoke(ctx, c, "resize terminal of container "+id, func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.Resize(ctx, &wire.ResizeRequest{Id: id, ExecId: execID, Columns: uint32(columns), Rows: uint32(rows)})
	})
	return err
}

// Upgrade makes the supervisor replace itself with another program: same process,
// same children, same descriptors. Nil means that the successor answers.
func (c *Client) Upgrade(ctx context.Context, binary string) error {
	l, err := c.current(ctx)
	if err != nil {
		return fmt.Errorf("upgrade supervisor: %w", err)
	}
	_, err = l.shim.Upgrade(ctx, &wire.UpgradeRequest{Binary: binary})
	if err != nil && !lostLink(err) {
		return fmt.Errorf("upgrade supervisor: %w", wire.Decode(err))
	}
	select {
	case <-l.gone:
	case <-ctx.Done():
		return fmt.Errorf("upgrade supervisor: wait for it to execute %s: %w", binary, ctx.Err())
	}
	c.drop(l)
	next, err := c.current(ctx)
	if err != nil {
		return fmt.Errorf("upgrade supervisor: %w", err)
	}
	if next.hello.Pid != l.hello.Pid {
		return fmt.Errorf("upgrade supervisor: it died and was replaced by process %d: %w", next.hello.Pid, errdefs.ErrInternal)
	}
	return nil
}

// Shutdown ends the supervisor and the client. It is refused with
// ErrFailedPrecondition while there is a container.
func (c *Client) Shutdown(ctx context.Context) error {
	l, err := c.current(ctx)
	if err != nil {
		return fmt.Errorf("shut supervisor down: %w", err)
	}
	c.setLeaving(true)
	if _, err := l.shim.Shutdown(ctx, &wire.Empty{}); err != nil && !lostLink(err) {
		c.setLeaving(false)
		return fmt.Errorf("shut supervisor down: %w", wire.Decode(err))
	}
	return c.Close()
}

// collectExits asks for exits until the client is closed.
func (c *Client) collectExits() {
	defer close(c.exits)
	var generation string
	var cursor uint64
	for {
		l, err := c.current(c.ctx)
		if err != nil {
			return
		}
		if l.hello.Generation != generation {
			generation, cursor = l.hello.Generation, 0
		}
		resp, err := l.shim.NextExits(c.ctx, &wire.NextExitsRequest{Cursor: cursor})
		if err != nil {
			if c.ctx.Err() != nil {
				return
			}
			if err := wire.Decode(err); !lostLink(err) && !errdefs.IsCanceled(err) { // canceled: it is ending
				c.opts.Log.Error("ask for exits", "error", err)
			}
			l.close() // ends in a new link, which starts from the first exit
			select {
			case <-l.gone:
				c.drop(l)
			case <-c.ctx.Done():
			}
			continue
		}
		for _, e := range resp.Exits {
			c.kept.drop(containerName(e.Id))
			select {
			case c.exits <- fromWire(e):
			case <-c.ctx.Done():
				return
			}
		}
		cursor = resp.Cursor
	}
}

func fromWire(e *wire.Exit) Exit {
	return Exit{
		ID: e.Id, Code: int(e.Code), Known: e.Known, Signal: int(e.Signal), OOM: e.Oom,
		Reason: e.Reason, At: time.Unix(0, e.AtNano),
	}
}

// LogTotals returns the supervisor's counters of log output.
func (c *Client) LogTotals(ctx context.Context) (LogTotals, error) {
	resp, err := invoke(ctx, c, "read log counters", func(ctx context.Context, l *link) (*wire.LogsResponse, error) {
		return l.shim.Logs(ctx, &wire.Empty{})
	})
	if err != nil {
		return LogTotals{}, err
	}
	return LogTotals{Written: resp.Written, Dropped: resp.Dropped, Throttled: time.Duration(resp.ThrottledNano)}, nil
}
