package pod

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod/machine"
	"github.com/berth-runtime/berth/internal/spec"
)

// defaultStopSignal is what a stop begins with when neither request nor image names a signal.
const defaultStopSignal = "SIGTERM"

// StopContainer ends a container: its stop signal first, SIGKILL to all of its
// processes once the grace is over. Of several callers the one with the
// shortest grace wins. Nil means that no process of it lives, whatever ended
// them; a container that does not exist or does not run is stopped.
func (e *Engine) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := e.findContainer(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	c.mu.Lock()
	running := c.stateLocked() == runtimeapi.ContainerState_CONTAINER_RUNNING
	c.mu.Unlock()
	if running && grace > 0 {
		if err := c.askToEnd(ctx, grace); err != nil {
			return fmt.Errorf("stop container: %w", err)
		}
	}
	if err := c.await(ctx, c.request(machine.Event{Kind: machine.Lower, Level: containerCreated})); err != nil {
		return fmt.Errorf("stop container: %w", err)
	}
	return nil
}

// askToEnd sends the stop signal once, for all callers, and waits for the end of
// the process or of the grace.
func (c *container) askToEnd(ctx context.Context, grace time.Duration) error {
	c.mu.Lock()
	first := !c.signalled
	c.signalled = true
	name := c.rec.StopSignal
	c.stage, c.since = "stop, grace "+grace.String(), time.Now()
	c.changed()
	c.mu.Unlock()
	if first {
		if name == "" {
			name = defaultStopSignal
		}
		sig, err := spec.SignalNumber(name)
		if err != nil {
			return err
		}
		err = c.engine.opts.Shim.Kill(ctx, c.rec.ID, sig)
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
			c.log.Warn("send stop signal", "signal", name, "error", err)
			c.mu.Lock()
			c.signalled = false // the next caller tries again
			c.mu.Unlock()
		}
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.exited:
	case <-timer.C:
		c.log.Info("grace is over, all processes are killed", "grace", grace)
	case <-ctx.Done():
		return fmt.Errorf("%s: waiting for it to end after %s: %w", c, name, ctx.Err())
	}
	return nil
}
