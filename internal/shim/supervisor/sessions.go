package supervisor

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/shim/wire"
)

// Exec starts a process in a container.
func (g *service) Exec(ctx context.Context, req *wire.ExecRequest) (*wire.ExecResponse, error) {
	return gated(g, func() (*wire.ExecResponse, error) {
		stdio := g.s.staging.take(req.Stdio)
		defer stdio.Close()
		c, err := g.s.find(req.ContainerId)
		if err != nil {
			return nil, err
		}
		if req.Staged && !req.Join && stdio == nil {
			return nil, fmt.Errorf("exec in container %s: its staged stdio has expired: %w", c.id, errdefs.ErrUnavailable)
		}
		if err := makeBlocking(stdio); err != nil {
			return nil, err
		}
		e, err := c.exec(ctx, req, stdio)
		if err != nil {
			return nil, err
		}
		return &wire.ExecResponse{Pid: int32(e.process.pid)}, nil
	})
}

// makeBlocking undoes what a client's poller did to descriptors that become a process's stdio.
func makeBlocking(files wire.Files) error {
	for kind, f := range files {
		if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
			return fmt.Errorf("make %s blocking: %w", kind, err)
		}
	}
	return nil
}

// ExecWait waits for the end of an exec.
func (g *service) ExecWait(ctx context.Context, req *wire.ExecRef) (*wire.Exit, error) {
	c, err := g.s.find(req.ContainerId)
	if err != nil {
		return nil, wire.Encode(err)
	}
	exit, err := c.waitExec(ctx, req.Id)
	return exit, wire.Encode(err)
}

// ExecKill kills an exec and all it started.
func (g *service) ExecKill(ctx context.Context, req *wire.ExecRef) (*wire.Empty, error) {
	return g.on(req.ContainerId, func(c *container) error {
		e, err := c.execution(req.Id)
		if err != nil {
			return err
		}
		e.collect()
		select {
		case <-e.ready:
		case <-ctx.Done():
			return ctx.Err()
		}
		return c.driver.killExec(ctx, e)
	})
}

// ExecRelease forgets an exec that has ended.
func (g *service) ExecRelease(_ context.Context, req *wire.ExecRef) (*wire.Empty, error) {
	return g.on(req.ContainerId, func(c *container) error {
		e, err := c.execution(req.Id)
		if err != nil {
			return nil //nolint:nilerr // it is gone, as asked
		}
		if e.process.running() {
			return fmt.Errorf("exec %s in container %s still runs: %w", e.id, c.id, errdefs.ErrFailedPrecondition)
		}
		return c.dropExecution(e)
	})
}

// stagedAttachment begins the names under which clients fetch the descriptors of attachments.
const stagedAttachment = "attach/"

// Attach opens a view; the client fetches its descriptors by the name it gets.
func (g *service) Attach(_ context.Context, req *wire.AttachRequest) (*wire.AttachResponse, error) {
	return gated(g, func() (*wire.AttachResponse, error) {
		c, err := g.s.find(req.Id)
		if err != nil {
			return nil, err
		}
		if err := c.running(); err != nil {
			return nil, err
		}
		c.mu.Lock()
		io, rec := c.io, c.rec
		c.mu.Unlock()
		if io == nil {
			return nil, fmt.Errorf("container %s has no output: %w", c.id, errdefs.ErrFailedPrecondition)
		}
		id := cmp.Or(req.Attachment, rand.Text()) // an older client leaves the choice
		if err := checkID("attachment", id); err != nil {
			return nil, err
		}
		files, err := io.attach(id, req.Session, req.Stdin && rec.Stdin, rec.Terminal)
		if err != nil {
			return nil, fmt.Errorf("attach to container %s: %w", c.id, err)
		}
		detach := func() {
			io.detach(func(other string, _ *tap) bool { return other == id })
			_ = g.s.dropped.take(id) // there is no reader for the error
		}
		if err := g.s.staging.put(stagedAttachment+id, stagedAttachment+c.pod(), files, detach); err != nil {
			detach()
			return nil, fmt.Errorf("attach to container %s: %w", c.id, err)
		}
		return &wire.AttachResponse{Attachment: id, Terminal: rec.Terminal}, nil
	})
}

// Detach ends a view. The error says that the view is incomplete.
func (g *service) Detach(_ context.Context, req *wire.AttachRef) (*wire.Empty, error) {
	g.s.staging.abandon(stagedAttachment + req.Attachment)
	return gated(g, func() (*wire.Empty, error) {
		c, err := g.s.find(req.Id)
		if err == nil {
			c.mu.Lock()
			io := c.io
			c.mu.Unlock()
			if io != nil {
				io.detach(func(id string, _ *tap) bool { return id == req.Attachment })
			}
		}
		if dropped := g.s.dropped.take(req.Attachment); dropped != nil {
			err = dropped
		}
		return &wire.Empty{}, err
	})
}

// CloseStdin ends the stdin of a container with stdin_once.
func (g *service) CloseStdin(ctx context.Context, req *wire.Container) (*wire.Empty, error) {
	return g.on(req.Id, func(c *container) error { return c.closeStdin(ctx) })
}

// Resize sets the size of a terminal.
func (g *service) Resize(ctx context.Context, req *wire.ResizeRequest) (*wire.Empty, error) {
	return g.on(req.Id, func(c *container) error {
		const limit = 1<<16 - 1
		if req.Columns > limit || req.Rows > limit {
			return fmt.Errorf("terminal size %dx%d is beyond %d: %w", req.Columns, req.Rows, limit, errdefs.ErrInvalidArgument)
		}
		console, err := c.terminal(req.ExecId)
		if err != nil {
			return err
		}
		defer func() { _ = console.Close() }()
		size := &unix.Winsize{Col: uint16(req.Columns), Row: uint16(req.Rows)}
		if err := unix.IoctlSetWinsize(int(console.Fd()), unix.TIOCSWINSZ, size); err != nil {
			return fmt.Errorf("resize terminal: %w", err)
		}
		// Fd has made the open file blocking, which its other users would notice.
		if err := unix.SetNonblock(int(console.Fd()), true); err != nil {
			return fmt.Errorf("resize terminal: %w", err)
		}
		return c.driver.resize(ctx, req.ExecId, size.Col, size.Row)
	})
}

// terminal returns a duplicate of the console of the container or of one of its execs.
func (c *container) terminal(execID string) (*os.File, error) {
	var console *os.File
	if execID != "" {
		e, err := c.execution(execID)
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		console = e.console
	} else {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.io == nil {
			return nil, notFound(c.id)
		}
		c.io.mu.Lock()
		defer c.io.mu.Unlock()
		console = c.io.console
	}
	if console == nil {
		return nil, fmt.Errorf("container %s %s has no terminal: %w", c.id, execID, errdefs.ErrFailedPrecondition)
	}
	return wire.Dup(console)
}
