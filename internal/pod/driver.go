package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	probe(ctx context.Context, step int) error
	save(s machine.State) error
	forget(s machine.State) error
	deadline(step int) time.Duration
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
	gone     bool  // forgotten: nothing of it is left
}

// drivers owns the goroutines and timers of all objects.
type drivers struct {
	ctx    context.Context
	wg     sync.WaitGroup
	mu     sync.Mutex
	closed bool
}

// start runs fn in an owned goroutine. It reports false once drivers closed.
func (d *drivers) start(fn func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.wg.Go(fn)
	return true
}

// request sends an event and returns a channel that gets the outcome: nil once
// the object is at the event's level (or beyond, when lowering).
func (o *object) request(ev machine.Event) <-chan error {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := waiter{level: ev.Level, rising: ev.Kind == machine.Raise, done: make(chan error, 1)}
	if o.state.Settled() && (w.rising && o.state.Goal >= ev.Level || !w.rising && o.state.Goal <= ev.Level) {
		w.done <- nil
		return w.done
	}
	o.waiters = append(o.waiters, w)
	o.sendLocked(ev)
	return w.done
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
func (o *object) run() {
	for {
		o.mu.Lock()
		if len(o.queue) == 0 || o.owner.ctx.Err() != nil {
			o.running = false
			o.stage = ""
			o.what.changed()
			o.mu.Unlock()
			return
		}
		e := o.queue[0]
		o.queue = o.queue[1:]
		ctx, cancel := o.begin(e)
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
func (o *object) begin(e machine.Effect) (context.Context, context.CancelFunc) {
	limit := saveDeadline
	switch e.Kind {
	case machine.Do, machine.Undo:
		limit = o.what.deadline(e.Step)
	case machine.Probe:
		limit = probeDeadline
	default:
	}
	ctx, cancel := context.WithTimeout(o.owner.ctx, limit)
	switch e.Kind {
	case machine.Do:
		o.stage, o.since, o.cancel = o.kind.Steps[e.Step], time.Now(), cancel
	case machine.Undo:
		o.stage, o.since = "undo "+o.kind.Steps[e.Step], time.Now()
	case machine.Probe:
		o.stage, o.since = "probe "+o.kind.Steps[e.Step], time.Now()
	default:
		return ctx, cancel
	}
	o.what.changed()
	return ctx, cancel
}

// perform carries out one effect and says what to tell the machine of it.
func (o *object) perform(ctx context.Context, e machine.Effect) (machine.Event, bool) {
	began := time.Now()
	var ev machine.Event
	switch e.Kind {
	case machine.Save:
		o.mu.Lock()
		s := o.state
		o.mu.Unlock()
		ev = machine.Event{Kind: machine.Saved, Err: o.wrap("save the record of", o.what.save(s))}
	case machine.Do:
		ev = machine.Event{Kind: machine.DidDo, Err: o.wrapStep("", e.Step, o.what.do(ctx, e.Step))}
	case machine.Undo:
		ev = machine.Event{Kind: machine.DidUndo, Err: o.wrapStep("undo ", e.Step, o.what.undo(ctx, e.Step))}
	case machine.Probe:
		ev = machine.Event{Kind: machine.Probed, Err: o.wrapStep("probe ", e.Step, o.what.probe(ctx, e.Step))}
	case machine.Forget:
		o.forget()
		return ev, false
	case machine.Settle:
		o.settle()
		return ev, false
	case machine.Postpone:
		o.postpone(e.Err)
		return ev, false
	default:
		return ev, false
	}
	o.report(e, ev.Err, time.Since(began))
	return ev, true
}

func (o *object) report(e machine.Effect, err error, took time.Duration) {
	if e.Kind == machine.Save && err == nil {
		return
	}
	level, name := slog.LevelDebug, "save"
	if e.Kind != machine.Save {
		name = o.kind.Steps[e.Step]
	}
	if err != nil {
		level = slog.LevelWarn
	}
	op := map[machine.EffectKind]string{machine.Save: "save", machine.Do: "do", machine.Undo: "undo", machine.Probe: "probe"}[e.Kind]
	o.log.Log(context.Background(), level, "step", "op", op, "stage", name, "took", took, "error", err)
}

func (o *object) wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", verb, o.what, err)
}

func (o *object) wrapStep(verb string, step int, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) && o.owner.ctx.Err() == nil {
		err = errors.Join(errStopped, err)
	}
	return fmt.Errorf("%s: stage %s%s: %w", o.what, verb, o.kind.Steps[step], err)
}

// settle answers everyone who waits: the object is at its goal.
func (o *object) settle() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.attempts, o.lastErr = 0, nil
	var later []waiter
	for _, w := range o.waiters {
		switch {
		case !w.rising && o.state.Goal > w.level:
			later = append(later, w)
		case w.rising && o.state.Goal < w.level:
			w.done <- cmpErr(o.state.Failure(), errStopped)
		default:
			w.done <- nil
		}
	}
	o.waiters = later
}

// postpone answers everyone who waits and sees to it that the undo is tried again.
func (o *object) postpone(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lastErr = err
	for _, w := range o.waiters {
		if w.rising {
			w.done <- errors.Join(cmpErr(o.state.Failure(), errStopped), err)
		} else {
			w.done <- err
		}
	}
	o.waiters = nil
	delay := min(firstRetry<<min(o.attempts, 10), slowestRetry)
	o.attempts++
	o.retry = time.AfterFunc(delay, func() { o.send(machine.Event{Kind: machine.Retry}) })
}

func (o *object) forget() {
	o.mu.Lock()
	s := o.state
	o.mu.Unlock()
	if err := o.what.forget(s); err != nil {
		o.log.Warn("remove record", "error", err)
	}
	o.mu.Lock()
	o.gone = true
	o.mu.Unlock()
}

// inFlight names the stage of what is in flight and since when.
func (o *object) inFlight() (stage string, since time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stage, o.since
}

// await waits for an outcome; a caller whose time is up learns where the
// operation stands, which goes on all the same.
func (o *object) await(ctx context.Context, outcome <-chan error) error {
	select {
	case err := <-outcome:
		return err
	case <-ctx.Done():
	case <-o.owner.ctx.Done():
		return fmt.Errorf("%s: the daemon is stopping: %w", o.what, errdefs.ErrUnavailable)
	}
	stage, since := o.inFlight()
	if stage == "" {
		return fmt.Errorf("%s: %w", o.what, ctx.Err())
	}
	return fmt.Errorf("%s: stage %s for %s, it goes on: %w", o.what, stage, time.Since(since).Round(time.Millisecond), ctx.Err())
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}
