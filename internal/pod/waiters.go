package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/pod/machine"
)

// settle answers everyone who waits: the object has reached a level.
func (o *object) settle(e machine.Effect) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.attempts, o.lastErr = 0, nil
	o.what.changed()
	var later []waiter
	for _, w := range o.waiters {
		switch {
		case !w.rising && e.Level > w.level:
			later = append(later, w)
		case w.rising && e.Level < w.level:
			w.done <- cmpErr(e.Err, errStopped)
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
	o.what.changed()
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
	if err := o.what.forget(); err != nil {
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

// idle returns a channel that is closed once nothing is in flight or waits to
// be performed.
func (o *object) idle() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.running {
		done := make(chan struct{})
		close(done)
		return done
	}
	if o.rested == nil {
		o.rested = make(chan struct{})
	}
	return o.rested
}

// stopRetry ends the timer of an undo that is to be tried again.
func (o *object) stopRetry() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.retry != nil {
		o.retry.Stop()
		o.retry = nil
	}
}
