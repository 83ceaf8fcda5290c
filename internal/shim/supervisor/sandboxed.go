package supervisor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/proc"
)

// sandboxEnded is why the exit of a container is unknown that went with its sandbox.
const sandboxEnded = "the sandbox of the pod ended, and the container with it"

// waitAgain is how long after a runtime failed to wait for a container it is asked again.
const waitAgain = time.Second

// sandboxed drives a container in the sandbox of another one, with gVisor's runsc. Of its
// processes the host sees none: the ID that the runtime tells is the sandbox's, which must not
// be signalled. So the runtime is asked to signal, and to wait: it tells the exit code to
// everybody who asks, until the container is deleted.
//
//	runsc run (sandbox container) ──▶ process of the sandbox, a child of the supervisor: command
//	runsc run (container)         ──▶ joins it
//	runsc wait (container)            a child that tells how the container ended, one while it runs
type sandboxed struct{ command }

func (d sandboxed) run(ctx context.Context, rec record, ends theirs) error {
	if err := d.begin(ctx, rec, ends); err != nil {
		return err
	}
	if stat, err := proc.Read(d.c.init.pid); err == nil {
		d.c.init.started = stat.Started
	}
	return d.follow() //nolint:contextcheck // it lives as long as the container
}

// follow has the runtime wait for the end of the container.
func (d sandboxed) follow() error {
	runtime, err := d.runtime()
	if err != nil {
		return err
	}
	d.c.s.wg.Go(func() {
		for {
			code, err := runtime.Wait(context.Background(), d.c.dir, d.c.id)
			switch {
			case err == nil:
				d.c.init.end(statusOf(code), true, "", time.Now())
				return
			case d.isLost(runtime):
				d.c.init.end(0, false, sandboxEnded, time.Now())
				return
			}
			d.c.s.log.Warn("wait for the end of a container", "container", d.c.id, "error", err)
			select {
			case <-time.After(waitAgain):
			case <-d.c.init.done:
				return
			}
		}
	})
	return nil
}

// isLost reports whether the end of the container can no longer be learned.
func (d sandboxed) isLost(runtime *ociruntime.Runtime) bool {
	if c := d.sandbox(); c == nil || !c.init.running() {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	_, err := runtime.State(ctx, d.c.dir, d.c.id)
	return errdefs.IsNotFound(err)
}

// sandbox is the container in whose sandbox this one is, nil when there is none any more.
func (d sandboxed) sandbox() *container {
	c, err := d.c.s.find(d.c.record().SandboxID)
	if err != nil {
		return nil
	}
	return c
}

func (d sandboxed) gotThrough(ctx context.Context) (pid int, started uint64, ok bool) {
	pid, err := ociruntime.ReadPID(filepath.Join(d.c.dir, pidFile))
	if err != nil {
		return 0, 0, false
	}
	if _, recorded := d.c.s.journal.Last(d.c.id); recorded {
		return pid, 0, true
	}
	if !d.wasStarted(ctx) {
		return 0, 0, false
	}
	if stat, err := proc.Read(pid); err == nil {
		started = stat.Started
	}
	return pid, started, true
}

func (d sandboxed) resume(context.Context) {
	if err := d.follow(); err != nil { //nolint:contextcheck // it lives as long as the container
		d.c.s.log.Error("follow a container in a sandbox", "container", d.c.id, "error", err)
		d.c.s.wg.Go(func() { d.c.init.end(0, false, err.Error(), time.Now()) })
	}
}

func (d sandboxed) kill(ctx context.Context, sig syscall.Signal) error {
	return d.signal(ctx, func(ctx context.Context, runtime *ociruntime.Runtime) error {
		return runtime.Kill(ctx, d.c.dir, d.c.id, sig)
	})
}

// killAll ends the sandbox, too, when it does not do what it is asked: nothing else would help.
func (d sandboxed) killAll(ctx context.Context) error {
	err := d.signal(ctx, func(ctx context.Context, runtime *ociruntime.Runtime) error {
		return runtime.KillAll(ctx, d.c.dir, d.c.id, syscall.SIGKILL)
	})
	switch sandbox := d.sandbox(); {
	case errdefs.IsNotFound(err):
		return nil // no process is left
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && sandbox != nil:
		d.c.s.log.Error("a sandbox does not answer and is killed", "container", d.c.id, "sandbox", sandbox.id, "error", err)
		return sandbox.signalInit(ctx, syscall.SIGKILL)
	}
	return err
}

// signal asks the runtime; it is ErrNotFound when the container has ended meanwhile.
func (d sandboxed) signal(ctx context.Context, ask func(context.Context, *ociruntime.Runtime) error) error {
	runtime, err := d.runtime()
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err = ask(bounded, runtime)
	if err == nil || bounded.Err() != nil {
		return err
	}
	state, stateErr := runtime.State(bounded, d.c.dir, d.c.id)
	if errdefs.IsNotFound(stateErr) || stateErr == nil && state.Status == "stopped" {
		return fmt.Errorf("signal container %s: %w: %w", d.c.id, err, errdefs.ErrNotFound)
	}
	return err
}
