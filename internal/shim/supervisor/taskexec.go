package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime/shimv2"
	"github.com/berth-runtime/berth/internal/ociruntime/shimv2/task"
	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

func (t *shimTask) exec(ctx context.Context, e *execution, req *wire.ExecRequest, stdio wire.Files) error {
	conn, err := t.connection()
	if err != nil {
		return err
	}
	create := &task.ExecRequest{Id: t.c.id, ExecId: e.id, Terminal: req.Terminal}
	if req.Terminal {
		near, far, err := openRelay()
		if err != nil {
			return err
		}
		defer func() { _ = far.Close() }()
		e.console, create.Stdin, create.Stdout = near, far.Name(), far.Name()
	} else {
		// The client's pipes have no other name; the shim opens them before Start is through.
		create.Stdout, create.Stderr = nameOf(stdio[wire.Stdout]), nameOf(stdio[wire.Stderr])
		if create.Stdin, err = e.makeStdin(stdio[wire.Stdin]); err != nil {
			return err
		}
	}
	if err := conn.Exec(ctx, create, req.Process); err != nil {
		return t.refused("exec", err)
	}
	pid, err := conn.Start(ctx, t.c.id, e.id)
	if err != nil {
		return t.refused("exec", err)
	}
	e.process.pid = pid
	if stat, err := proc.Read(pid); err == nil {
		e.process.started, e.process.group = stat.Started, stat.Group
	}
	t.carryStdin(e)       //nolint:contextcheck // it lives as long as the exec
	t.followExec(conn, e) //nolint:contextcheck // so does this
	return nil
}

// nameOf is a name by which another process can open a descriptor of this one.
func nameOf(f *os.File) string {
	if f == nil {
		return ""
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

// makeStdin makes a FIFO between the client's pipe and the shim, which holds its
// stdin open itself until it gets the end of input. It returns the FIFO's name.
func (e *execution) makeStdin(from *os.File) (string, error) {
	if from == nil {
		return "", nil
	}
	path := filepath.Join(e.dir, stdinFIFO)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return "", fmt.Errorf("make FIFO: %w", err)
	}
	// No other reader exists, and this reads without holding a thread.
	if err := unix.SetNonblock(int(from.Fd()), true); err != nil {
		return "", fmt.Errorf("make stdin non-blocking: %w", err)
	}
	stdin, err := wire.Dup(from)
	if err != nil {
		return "", err
	}
	e.stdin = stdin
	return path, nil
}

// carryStdin copies input until the client ends it or the exec is over. The bytes
// are in one pipe or in the other, so a supervisor that is killed loses none.
func (t *shimTask) carryStdin(e *execution) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	conn := t.conn.Load()
	if e.stdin == nil || e.feed != nil || conn == nil {
		return
	}
	// Read-write: the shim may not have opened its end, or have closed it.
	feed, err := openFIFO(e.dir, stdinFIFO, unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		t.c.s.log.Error("carry input of an exec", "container", t.c.id, "exec", e.id, "error", err)
		return
	}
	e.feed = feed
	stdin := e.stdin
	t.c.s.wg.Go(func() {
		if _, err := io.Copy(feed, stdin); err != nil {
			return // closed: the exec is over
		}
		ctx, cancel := context.WithTimeout(context.Background(), callTime)
		defer cancel()
		if err := conn.CloseStdin(ctx, t.c.id, e.id); err != nil && e.process.running() {
			t.c.s.log.Warn("close stdin of an exec", "container", t.c.id, "exec", e.id, "error", err)
		}
		t.c.mu.Lock()
		defer t.c.mu.Unlock()
		if e.feed == feed {
			_ = feed.Close()
			e.feed = nil
		}
	})
}

func (t *shimTask) followExec(conn *shimv2.Conn, e *execution) {
	t.c.s.wg.Go(func() {
		code, at, err := conn.Wait(context.Background(), t.c.id, e.id)
		switch {
		case err == nil:
			e.process.end(statusOf(code), true, "", at)
		case errors.Is(err, shimv2.ErrGone):
			e.process.end(0, false, shimDied, time.Now())
		default:
			e.process.end(0, false, "the shim-v2 cannot tell: "+err.Error(), time.Now())
		}
	})
}

func (t *shimTask) resumeExec(e *execution) {
	conn, err := t.connection()
	if err != nil {
		e.process.end(0, false, shimDied, time.Now())
		return
	}
	t.followExec(conn, e)
	t.carryStdin(e)
}

func (t *shimTask) killExec(ctx context.Context, e *execution) error {
	conn, err := t.connection()
	if err != nil {
		return nil // it went with the shim
	}
	ask, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if e.process.pid == 0 { // its start was cut off
		_, pid, err := conn.State(ask, t.c.id, e.id)
		if err != nil || pid <= 1 {
			return nil // or else it was not started
		}
		e.process.pid = pid
		if stat, err := proc.Read(pid); err == nil {
			e.process.started = stat.Started
		}
	}
	// In a virtual machine the ID says nothing here; a shim tells that of its hypervisor.
	if procs, err := t.c.s.cfg.Cgroups.Procs(t.c.record().Cgroup, true); err == nil && slices.Contains(procs, e.process.pid) {
		return t.c.killTree(ctx, e.process)
	}
	err = conn.Kill(ask, t.c.id, e.id, syscall.SIGKILL, true)
	if errdefs.IsNotFound(err) || errors.Is(err, shimv2.ErrGone) || !e.process.running() {
		return nil
	}
	return err
}

func (t *shimTask) releaseExec(e *execution) {
	conn, err := t.connection()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if err := conn.Delete(ctx, t.c.id, e.id); err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, shimv2.ErrGone) {
		t.c.s.log.Warn("delete an exec from its shim", "container", t.c.id, "exec", e.id, "error", err)
	}
}
