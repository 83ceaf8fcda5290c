package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod/machine"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/text"
)

// errExited is why a container that ended by itself is lowered.
var errExited = errors.New("its process ended")

// watchExits takes the exits that the supervisor reports, until it is closed.
func (e *Engine) watchExits(ctx context.Context) {
	for {
		select {
		case exit, ok := <-e.opts.Shim.Exits():
			if !ok {
				return
			}
			e.exitSeen(ctx, exit)
		case <-ctx.Done():
			return
		}
	}
}

// exitSeen notes an exit. The supervisor may report one more than once.
func (e *Engine) exitSeen(ctx context.Context, exit shim.Exit) {
	e.mu.RLock()
	c, isContainer := e.containers.byID[exit.ID]
	s, isSandbox := e.sandboxes.byID[exit.ID]
	e.mu.RUnlock()
	switch {
	case isContainer:
		c.exitReported(exit)
	case isSandbox:
		s.holderEnded(exit)
	default: // an orphan that was killed, or one that was removed before its exit arrived
		ctx, cancel := context.WithTimeout(ctx, stepDeadline)
		defer cancel()
		if err := e.opts.Shim.Delete(ctx, exit.ID); err != nil {
			e.opts.Log.Warn("remove process that no record tells of", "id", exit.ID, "error", err)
		}
	}
}

func (c *container) exitReported(exit shim.Exit) {
	c.noteReport(exit)
	c.publishEnd()
}

func (c *container) noteReport(exit shim.Exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.StartedAt.IsZero() && c.state.Rising() {
		c.pending = &exit
	} else {
		c.noteExitLocked(exitOf(exit), exit.At)
	}
	c.sendLocked(machine.Event{Kind: machine.Fall, Level: containerCreated, Err: errExited})
}

// noteExitLocked records how the container ended; the first report counts.
func (c *container) noteExitLocked(exit exitRecord, at time.Time) {
	if c.rec.Exit != nil {
		return
	}
	if at.Before(c.rec.StartedAt) { // the clock was set back, or the start was seen after the end
		at = c.rec.StartedAt
	}
	exit.Message = text.Cut(exit.Message, maxExitMessage)
	c.rec.Exit, c.rec.FinishedAt = &exit, at
	close(c.exited)
	c.changed()
	c.log.Info("container ended", "code", exit.Code, "reason", exit.Reason)
}

// lose records that the exit of a container that was started can not be
// learned.
func (c *container) lose(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.StartedAt.IsZero() && c.rec.Problem == "" {
		return
	}
	c.noteExitLocked(exitUnknown(why), time.Now())
}

// exitUnknown is the end of a container whose exit code is unknown.
func exitUnknown(why string) exitRecord {
	return exitRecord{Code: codeUnknown, Reason: reasonUnknown, Message: "exit code unknown: " + why}
}

func (c *container) hasExited() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Exit != nil
}

// exitOf says in kubelet's words how a process ended. Want of memory comes
// first: kubelet fails an init container for it even if it exited with 0.
func exitOf(exit shim.Exit) exitRecord {
	r := exitRecord{Code: int32(exit.Code), Reason: reasonError} //nolint:gosec // an exit code fits
	switch {
	case !exit.Known:
		r = exitUnknown(exit.Reason)
	case exit.OOM:
		r.Reason, r.Message = reasonOOMKilled, "the kernel killed a process of the container for want of memory"
	case exit.Code == 0:
		r.Reason = reasonCompleted
	}
	return r
}

// holderEnded notes the end of the process that everything else of the pod
// depends on: what was in its PID namespace, or in its sandbox, ended with it.
func (s *sandbox) holderEnded(exit shim.Exit) {
	how := fmt.Sprintf("code %d", exit.Code)
	switch {
	case exit.OOM:
		how += ", the kernel killed a process of it for want of memory"
	case !exit.Known:
		how = exit.Reason
	}
	err := fmt.Errorf("the %s ended (%s), and with it every process in there", s.holder(), how)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Goal == sandboxReady && s.rec.Listed {
		s.rec.Problem = text.Cut(err.Error(), maxExitMessage) // clients see the reason beside the state
	}
	s.sendLocked(machine.Event{Kind: machine.Fall, Level: sandboxStopped, Err: err})
}

// holder says what ends the pod when it ends.
func (s *sandbox) holder() string {
	if s.hasContainer {
		return "sandbox container, in whose sandbox the pod's containers run,"
	}
	return "process that held the pod's PID namespace"
}

// probeProcess looks for the process after a restart of the daemon. One that has ended is there: its
// end is reported as an exit.
func (c *container) probeProcess() error {
	if _, ok := c.engine.supervised[c.rec.ID]; !ok {
		return errors.New("the supervisor does not know its process, as after a reboot of the node")
	}
	return nil
}

// adoptProcess records a process that was being started when the daemon was killed, and has started.
func (c *container) adoptProcess() {
	known := c.engine.supervised[c.rec.ID]
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.StartedAt.IsZero() {
		c.rec.StartedAt, c.rec.PID = known.Started, known.PID
	}
}

// lost: without its files a container has ended, also one that never ran. The end of a process that
// the supervisor has is reported by it.
func (c *container) lost(step string, err error) {
	if _, supervised := c.engine.supervised[c.rec.ID]; supervised || step == processStep {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noteExitLocked(exitUnknown(err.Error()), time.Now())
}

func (s *sandbox) lost(string, error) {} // settled records the reason

// settled notes that the container has reached a level, and tells who listens.
func (c *container) settled(e machine.Effect) {
	c.mu.Lock()
	if e.Level == containerCreated && e.Err != nil && c.rec.Exit == nil && !c.rec.StartedAt.IsZero() {
		c.noteExitLocked(exitUnknown(e.Err.Error()), time.Now())
	}
	exited, made := c.rec.Exit != nil, c.fresh && e.Level == containerCreated
	c.fresh = c.fresh && !made
	c.changed()
	c.mu.Unlock()
	if made {
		c.engine.opts.Plugins.ContainerCreated(c.engine.drivers.ctx, c.subject())
	}
	switch {
	case e.Level == containerRunning:
		c.publish(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
		if exited {
			c.publish(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
		}
	case e.Level == containerLost, e.Level == containerCreated && exited:
		c.publish(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	case e.Level == containerCreated:
		c.publish(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	case e.Level == containerGone && c.rec.Listed:
		if exited {
			c.publish(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
		}
		c.publish(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
}
