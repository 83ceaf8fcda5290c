package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/pod/machine"
)

// Bounds of the driver.
const (
	saveDeadline  = 10 * time.Second
	probeDeadline = 10 * time.Second
	firstRetry    = time.Second
	slowestRetry  = time.Minute
)

// errStopped tells a caller that another request took its goal away.
var errStopped = fmt.Errorf("another request stopped it meanwhile: %w", errdefs.ErrFailedPrecondition)

// performer carries out the effects of one kind of object. Undo must succeed
// for a step of which nothing or only a part exists. None of its methods is
// called while another runs, and none with object.mu held but changed.
type performer interface {
	do(ctx context.Context, step int) error
	undo(ctx context.Context, step int) error
	// probe looks whether a step survived what ended the previous daemon.
	probe(step int) error
	// lost records what it means that a probe did not find a step, which is not done again.
	lost(step string, err error)
	// save writes the record down as it is now; forget removes it.
	save() error
	forget() error
	deadline(step int) time.Duration
	// settled notes what reaching a level means, before callers are answered.
	settled(e machine.Effect)
	// changed publishes what readers see. object.mu is held.
	changed()
	// String names the object in errors: what it is, namespace/name and uid.
	String() string
}

// waiter is a caller who waits for a level.
type waiter struct {
	level  int
	rising bool
	done   chan error // buffered, gets one value
}

// object drives one sandbox or container: it asks the machine what to do,
// performs it and feeds the result back. Its goroutine lives only while there
// is something to do.
type object struct {
	kind  *machine.Kind
	what  performer
	log   *slog.Logger
	owner *drivers

	mu       sync.Mutex
	state    machine.State
	queue    []machine.Effect
	running  bool
	waiters  []waiter
	cancel   context.CancelFunc // ends the Do in flight
	stage    string
	since    time.Time
	attempts int
	retry    *time.Timer
	lastErr  error // of the undo that is being retried
	rested   chan struct{}
	removing bool // a request wants it gone: it does not rise any more
	gone     bool // forgotten: nothing of it is left
}

// drivers owns the goroutines and timers of all objects.
type drivers struct {
	ctx    context.Context
	fault  func(effect string) error // see Options
	wg     sync.WaitGroup
	mu     sync.Mutex
	closed bool
}

// start runs fn in an owned goroutine. It reports false once drivers closed.
func (d *drivers) start(fn func(context.Context)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.wg.Go(func() { fn(d.ctx) })
	return true
}

// request sends an event and returns a channel that gets the outcome: nil once
// the object is at the event's level (or beyond, when lowering).
func (o *object) request(ev machine.Event) <-chan error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.requestLocked(ev)
}

// requestLocked is request for a caller who has looked first whether it may ask.
// Preconditions: object.mu is held.
func (o *object) requestLocked(ev machine.Event) <-chan error {
	w := waiter{level: ev.Level, rising: ev.Kind == machine.Raise, done: make(chan error, 1)}
	switch {
	case o.gone && !w.rising, o.state.Settled() && o.state.Goal > 0 &&
		(w.rising && o.state.Goal >= ev.Level || !w.rising && o.state.Goal <= ev.Level):
		w.done <- nil
		return w.done
	case w.rising && o.isWantedBelow(ev.Level):
		w.done <- cmpErr(o.state.Failure(), errStopped)
		return w.done
	}
	o.removing = o.removing || !w.rising && w.level == 0
	o.waiters = append(o.waiters, w)
	o.sendLocked(ev)
	return w.done
}

// isWantedBelow reports whether a request has asked for less than the level, and
// was not answered yet or may rely on it for ever.
func (o *object) isWantedBelow(level int) bool {
	return o.gone || o.removing || slices.ContainsFunc(o.waiters, func(w waiter) bool { return !w.rising && w.level < level })
}

// takeUp goes on where a previous daemon was. An object that was being removed still is.
func (o *object) takeUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sendLocked(machine.Event{Kind: machine.Recover})
	o.removing = o.state.Goal == 0
}

// send feeds an event to the machine and makes sure that its effects are performed.
func (o *object) send(ev machine.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sendLocked(ev)
}

func (o *object) sendLocked(ev machine.Event) {
	if o.retry != nil {
		o.retry.Stop()
		o.retry = nil
	}
	var effects []machine.Effect
	o.state, effects = o.kind.Step(o.state, ev)
	o.take(effects)
	o.what.changed()
	if o.running || len(o.queue) == 0 {
		return
	}
	o.running = o.owner.start(o.run)
}

// take queues effects; one that ends the effect in flight cannot wait its turn.
func (o *object) take(effects []machine.Effect) {
	for _, e := range effects {
		if e.Kind != machine.Cancel {
			o.queue = append(o.queue, e)
		} else if o.cancel != nil {
			o.cancel()
		}
	}
}

// run performs effects until there are none.
func (o *object) run(base context.Context) {
	for {
		o.mu.Lock()
		if len(o.queue) == 0 || base.Err() != nil {
			o.running, o.stage = false, ""
			if o.rested != nil {
				close(o.rested)
				o.rested = nil
			}
			o.what.changed()
			o.mu.Unlock()
			return
		}
		e := o.queue[0]
		o.queue = o.queue[1:]
		ctx, cancel := o.begin(base, e)
		o.mu.Unlock()

		result, report := o.perform(ctx, e)
		cancel()

		o.mu.Lock()
		o.cancel = nil
		if report {
			var effects []machine.Effect
			o.state, effects = o.kind.Step(o.state, result)
			o.take(effects)
		}
		o.what.changed()
		o.mu.Unlock()
	}
}

// begin notes the stage and gives the effect its deadline.
func (o *object) begin(base context.Context, e machine.Effect) (context.Context, context.CancelFunc) {
	limit := saveDeadline
	switch e.Kind {
	case machine.Do, machine.Undo:
		limit = o.what.deadline(e.Step)
	case machine.Probe:
		limit = probeDeadline
	default:
	}
	ctx, cancel := context.WithTimeout(base, limit)
	switch e.Kind {
	case machine.Do:
		o.stage, o.since, o.cancel = o.kind.Steps[e.Step].Name, time.Now(), cancel
	case machine.Undo:
		o.stage, o.since = "undo "+o.kind.Steps[e.Step].Name, time.Now()
	case machine.Probe:
		o.stage, o.since = "probe "+o.kind.Steps[e.Step].Name, time.Now()
	default:
		return ctx, cancel
	}
	o.what.changed()
	return ctx, cancel
}

// perform carries out one effect and says what to tell the machine of it.
func (o *object) perform(ctx context.Context, e machine.Effect) (machine.Event, bool) {
	switch e.Kind {
	case machine.Forget:
		o.forget()
	case machine.Settle:
		o.what.settled(e)
		o.settle(e)
	case machine.Postpone:
		o.postpone(e.Err)
	default:
		began := time.Now()
		ev := o.carryOut(ctx, e)
		o.report(e, ev.Err, time.Since(began))
		return ev, true
	}
	return machine.Event{}, false
}

// carryOut performs an effect that can fail.
func (o *object) carryOut(ctx context.Context, e machine.Effect) machine.Event {
	var err error
	if o.owner.fault != nil {
		err = o.owner.fault(o.name(e))
	}
	switch {
	case e.Kind == machine.Save:
		if err == nil {
			err = o.what.save()
		}
		return machine.Event{Kind: machine.Saved, Err: o.wrap(e, err)}
	case e.Kind == machine.Do:
		if err == nil {
			err = o.what.do(ctx, e.Step)
		}
		return machine.Event{Kind: machine.DidDo, Err: o.wrap(e, err)}
	case e.Kind == machine.Undo:
		if err == nil {
			err = o.what.undo(ctx, e.Step)
		}
		return machine.Event{Kind: machine.DidUndo, Err: o.wrap(e, err)}
	}
	if err == nil {
		err = o.what.probe(e.Step)
	}
	if err != nil && !o.kind.Steps[e.Step].Again {
		o.what.lost(o.kind.Steps[e.Step].Name, err)
	}
	return machine.Event{Kind: machine.Probed, Err: o.wrap(e, err)}
}

// name is what an effect is called in errors and logs.
func (o *object) name(e machine.Effect) string {
	if e.Kind == machine.Save {
		return "save"
	}
	verb := map[machine.EffectKind]string{machine.Do: "do", machine.Undo: "undo", machine.Probe: "probe"}[e.Kind]
	return verb + " " + o.kind.Steps[e.Step].Name
}

func (o *object) report(e machine.Effect, err error, took time.Duration) {
	switch {
	case err != nil:
		o.log.Warn("stage failed", "stage", o.name(e), "took", took, "error", err)
	case e.Kind != machine.Save:
		o.log.Debug("stage", "stage", o.name(e), "took", took)
	}
}

// wrap names the object and the stage in an error.
func (o *object) wrap(e machine.Effect, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) && o.owner.ctx.Err() == nil {
		err = errors.Join(errStopped, err)
	}
	return fmt.Errorf("%s: stage %s: %w", o.what, strings.TrimPrefix(o.name(e), "do "), err)
}
