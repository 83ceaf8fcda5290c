package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/shimv2"
	"github.com/berth-runtime/berth/internal/ociruntime/shimv2/task"
	"github.com/berth-runtime/berth/internal/proc"
)

// shimDied is why an exit is unknown when the process that was to tell it is gone.
const shimDied = "the shim-v2 process of the pod died, and its containers were ended with it"

// shimTask drives a container with a shim-v2. The shim is the parent of its processes:
// it carries their output to the FIFOs, and Wait tells how they ended.
type shimTask struct {
	c    *container
	host *host // set by join or run
	// resumed says that a predecessor may have started a shim without a note of it.
	resumed bool
	conn    atomic.Pointer[shimv2.Conn]
}

// connection is that to the shim; it is ErrNotFound before the container was started.
func (t *shimTask) connection() (*shimv2.Conn, error) {
	if conn := t.conn.Load(); conn != nil {
		return conn, nil
	}
	return nil, fmt.Errorf("container %s has no shim: %w", t.c.id, errdefs.ErrNotFound)
}

// refused makes an error of a shim one of its handler, with a kind that its words tell.
func (t *shimTask) refused(op string, err error) error {
	var refusal *shimv2.CallError
	if errors.As(err, &refusal) && errors.Is(err, errdefs.ErrUnknown) {
		return &ociruntime.CommandError{Handler: t.c.record().Handler.Name, Op: op, Message: refusal.Message}
	}
	return err
}

func (t *shimTask) join() {
	rec := t.c.record()
	t.host, t.resumed = t.c.s.hostOf(&rec), true
}

func (t *shimTask) run(ctx context.Context, rec record, _ theirs) error {
	c := t.c
	program, err := c.s.shimProgram(rec.Handler)
	if err != nil {
		return err
	}
	t.host = c.s.hostOf(&rec)
	if err := t.host.acquire(ctx); err != nil {
		return err
	}
	defer t.host.release()
	if err := shimv2.Tidy(rec.Bundle); err != nil {
		return err
	}
	conn, err := t.host.open(ctx, program, &rec)
	if err != nil {
		return err
	}
	t.conn.Store(conn)
	req := &task.CreateRequest{Id: c.id, Bundle: rec.Bundle, Terminal: rec.Terminal}
	if req.Options, err = program.Options(); err != nil {
		return err
	}
	if rec.Terminal {
		far, err := t.relayConsole(req, rec.Stdin)
		if err != nil {
			return err
		}
		defer func() { _ = far.Close() }()
	} else {
		req.Stdout, req.Stderr = filepath.Join(c.dir, stdoutFIFO), filepath.Join(c.dir, stderrFIFO)
		if rec.Stdin {
			req.Stdin = filepath.Join(c.dir, stdinFIFO)
		}
	}
	if c.init.pid, err = conn.Create(ctx, req); err != nil {
		return t.refused("run", err)
	}
	if err := t.host.learnPID(ctx, c.id); err != nil {
		return fmt.Errorf("find process of shim: %w", err)
	}
	pid, err := conn.Start(ctx, c.id, "")
	if err != nil {
		return t.refused("run", err)
	}
	if pid > 1 {
		c.init.pid = pid
	}
	if stat, err := proc.Read(c.init.pid); err == nil {
		c.init.started = stat.Started
	}
	t.follow(conn) //nolint:contextcheck // it lives as long as the container
	return nil
}

// relayConsole gives the shim a terminal in place of FIFOs, since it wants names and
// the supervisor's clients a descriptor for both directions. The caller closes the far side.
func (t *shimTask) relayConsole(req *task.CreateRequest, stdin bool) (*os.File, error) {
	near, far, err := openRelay()
	if err != nil {
		return nil, err
	}
	t.c.io.setConsole(near)
	req.Stdout = far.Name()
	if stdin {
		req.Stdin = far.Name()
	}
	return far, nil
}

// follow waits for the end of the init process.
func (t *shimTask) follow(conn *shimv2.Conn) {
	c := t.c
	c.s.wg.Go(func() {
		for {
			code, at, err := conn.Wait(context.Background(), c.id, "")
			if err == nil {
				c.init.end(statusOf(code), true, "", at)
				return
			}
			if conn = t.reconnect(err); conn == nil {
				t.lost(err)
				return
			}
		}
	})
}

// statusOf is the wait status behind an exit code: shims tell 128 + signal, as shells do.
func statusOf(code int) uint32 {
	const signals, last = 128, 64
	if code > signals && code <= signals+last {
		return uint32(code - signals)
	}
	return uint32(code&0xff) << 8
}

// reconnect is for a connection that ended while its shim lives on.
func (t *shimTask) reconnect(cause error) *shimv2.Conn {
	if !errors.Is(cause, shimv2.ErrGone) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if t.host.acquire(ctx) != nil {
		return nil
	}
	defer t.host.release()
	conn, err := t.host.connect(ctx)
	if err != nil {
		return nil // it says the same
	}
	t.conn.Store(conn)
	return conn
}

// lost ends what runs of a container whose shim can tell nothing any more.
func (t *shimTask) lost(cause error) {
	c, rec := t.c, t.c.record()
	c.s.log.Error("container lost its shim", "container", c.id, "error", cause)
	ctx, cancel := undoTime()
	defer cancel()
	if err := t.cleanUp(ctx, rec); err != nil {
		c.s.log.Error("clean up after a shim", "container", c.id, "error", err)
	}
	if rec.Cgroup != "" {
		if err := c.s.cfg.Cgroups.KillAll(ctx, rec.Cgroup); err != nil {
			c.s.log.Error("kill what a shim left", "container", c.id, "error", err)
		}
	}
	reason := shimDied
	if !errors.Is(cause, shimv2.ErrGone) {
		reason = "the shim-v2 cannot tell: " + cause.Error()
	}
	c.init.end(0, false, reason, time.Now())
}

// cleanUp runs the action that shims have for what their dead processes left.
func (t *shimTask) cleanUp(ctx context.Context, rec record) error {
	if !exists(rec.Bundle) {
		return nil
	}
	program, err := t.c.s.shimProgram(rec.Handler)
	if err != nil {
		return err
	}
	return program.Delete(ctx, t.c.dir, rec.Bundle, t.c.id)
}

func (t *shimTask) gotThrough(ctx context.Context) (pid int, started uint64, ok bool) {
	if t.c.record().Terminal { // which went with the predecessor
		return 0, 0, false
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if t.host.acquire(ctx) != nil {
		return 0, 0, false
	}
	defer t.host.release()
	conn, err := t.host.connect(ctx)
	if err != nil {
		return 0, 0, false
	}
	state, pid, err := conn.State(ctx, t.c.id, "")
	if err != nil || state != shimv2.StateRunning && state != shimv2.StateStopped || pid <= 1 {
		return 0, 0, false
	}
	if stat, err := proc.Read(pid); err == nil {
		started = stat.Started
	}
	return pid, started, true
}

func (t *shimTask) resume(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := t.host.acquire(ctx)
	if err == nil {
		defer t.host.release()
		var conn *shimv2.Conn
		if conn, err = t.host.connect(ctx); err == nil {
			t.conn.Store(conn)
			t.follow(conn) //nolint:contextcheck // it lives as long as the container
			return
		}
	}
	t.c.s.wg.Go(func() { t.lost(err) }) //nolint:contextcheck // a clean-up has its own time
}

func (t *shimTask) kill(ctx context.Context, sig syscall.Signal) error {
	conn, err := t.connection()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err = conn.Kill(ctx, t.c.id, "", sig, false)
	if errors.Is(err, shimv2.ErrGone) {
		return fmt.Errorf("signal container %s: %w: %w", t.c.id, err, errdefs.ErrNotFound)
	}
	return err
}

// killAll kills by the cgroup and asks the shim, which may have the processes elsewhere: in a virtual machine.
func (t *shimTask) killAll(ctx context.Context) error {
	if err := t.c.s.cfg.Cgroups.KillAll(ctx, t.c.record().Cgroup); err != nil {
		return err
	}
	conn, err := t.connection()
	if err != nil || !t.c.init.running() {
		return nil // there is no process
	}
	ask, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err = conn.Kill(ask, t.c.id, "", syscall.SIGKILL, true)
	if ask.Err() == nil || ctx.Err() != nil {
		if errdefs.IsNotFound(err) || errors.Is(err, shimv2.ErrGone) || !t.c.init.running() {
			return nil
		}
		return err
	}
	// A shim that does not answer is in the way of everything.
	if err := t.host.acquire(ctx); err != nil {
		return err
	}
	defer t.host.release()
	return t.host.killNow()
}

func (t *shimTask) update(ctx context.Context, resources []byte) error {
	conn, err := t.connection()
	if err != nil {
		return err
	}
	return t.refused("update", conn.Update(ctx, t.c.id, resources))
}

// settle has the shim forget the container: it answers once it has copied all output.
func (t *shimTask) settle(ctx context.Context) {
	conn, err := t.connection()
	if err != nil {
		return
	}
	if err := conn.Delete(ctx, t.c.id, ""); err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, shimv2.ErrGone) {
		t.c.s.log.Warn("delete an ended container from its shim", "container", t.c.id, "error", err)
	}
}

func (t *shimTask) delete(ctx context.Context, rec record) error {
	h := t.host
	if h == nil {
		return nil // nothing was begun
	}
	if err := h.acquire(ctx); err != nil {
		return err
	}
	defer h.release()
	if err := errors.Join(t.forget(ctx, rec), shimv2.Tidy(rec.Bundle)); err != nil {
		return err
	}
	if h.leave(t.c.id) {
		return h.end(ctx, t.c.id)
	}
	return nil
}

// forget removes the container from its shim, or does without the shim. Preconditions:
// the caller holds the host's token.
func (t *shimTask) forget(ctx context.Context, rec record) error {
	conn, err := t.host.connect(ctx)
	if errdefs.IsNotFound(err) && t.resumed {
		// The predecessor may have been killed before it took a note; the shim is found by its pod.
		if program, programErr := t.c.s.shimProgram(rec.Handler); programErr == nil && exists(rec.Bundle) {
			conn, err = t.host.open(ctx, program, &rec)
		}
	}
	switch {
	case errdefs.IsNotFound(err):
		return nil // there was none
	case err == nil:
		ask, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		err = conn.Delete(ask, t.c.id, "")
		if errdefs.IsNotFound(err) && rec.State == stateStarting {
			break // a Create that was cut off leaves what its shim does not know
		}
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		t.c.s.log.Warn("delete a container from its shim", "container", t.c.id, "error", err)
		if ask.Err() != nil {
			if err := t.host.killNow(); err != nil {
				return err
			}
		}
	}
	return t.cleanUp(ctx, rec)
}

func (t *shimTask) closeStdin(ctx context.Context) error {
	conn, err := t.connection()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return conn.CloseStdin(ctx, t.c.id, "")
}

func (t *shimTask) resize(ctx context.Context, execID string, columns, rows uint16) error {
	conn, err := t.connection()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return conn.Resize(ctx, t.c.id, execID, columns, rows)
}
