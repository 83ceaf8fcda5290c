package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// stallError says that a registry was too slow. It is no net.Error with
// Timeout: the library would try four more times.
type stallError struct {
	after   time.Duration
	minimum int64 // bytes; 0 for an answer that did not begin
}

// Error says what was expected.
func (e *stallError) Error() string {
	switch e.minimum {
	case 0:
		return fmt.Sprintf("the registry did not answer for %s", e.after)
	case 1:
		return fmt.Sprintf("the registry sent nothing for %s", e.after)
	default:
		return fmt.Sprintf("the registry sent fewer than %d bytes in %s", e.minimum, e.after)
	}
}

// pace calls expired when fewer than minimum bytes arrive in a window. Only the time spent waiting
// for the registry counts, not the time spent writing what arrived.
type pace struct {
	window  time.Duration
	minimum int64
	timer   *time.Timer // runs while a read waits

	began  time.Time
	waited time.Duration // of this window
	bytes  int64         // of this window
}

func newPace(window time.Duration, minimum int64, expired func()) *pace {
	p := &pace{window: window, minimum: minimum, timer: time.AfterFunc(window, expired)}
	p.timer.Stop()
	return p
}

// begin is called before a read.
func (p *pace) begin() {
	p.began = time.Now()
	p.timer.Reset(p.window - p.waited)
}

// end is called after a read.
func (p *pace) end(n int) {
	p.timer.Stop()
	p.bytes += int64(n)
	if p.bytes >= p.minimum {
		p.bytes, p.waited = 0, 0
		return
	}
	p.waited += time.Since(p.began)
}

// limits bound how slow a registry may be.
type limits struct {
	firstByte time.Duration // wait for an answer to begin
	stall     time.Duration // window in which minimum bytes must arrive
	minimum   int64
}

func newLimits(opts Options) limits {
	return limits{
		firstByte: firstByteFactor * opts.StallTimeout, stall: opts.StallTimeout,
		minimum: max(1, int64(opts.StallTimeout.Seconds()*float64(opts.MinBytesPerSecond))),
	}
}

// stallTransport ends a request whose answer does not begin in time, or whose body arrives too
// slowly.
type stallTransport struct {
	next   http.RoundTripper
	limits limits
	slow   func() // called when a request is slow enough that other pulls must not wait for it
}

// RoundTrip sends a request and waits for the head of its answer.
func (t *stallTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	silent := &stallError{after: t.limits.firstByte}
	timer := time.AfterFunc(t.limits.firstByte, func() { cancel(silent) })
	slow := time.AfterFunc(shareWindow, t.slow)
	answer, err := t.next.RoundTrip(r.WithContext(ctx))
	timer.Stop()
	slow.Stop()
	if err != nil {
		if errors.Is(context.Cause(ctx), silent) {
			err = silent
		}
		cancel(nil)
		return nil, err
	}
	stalled := &stallError{after: t.limits.stall, minimum: t.limits.minimum}
	answer.Body = &stallBody{
		body: answer.Body, ctx: ctx, cancel: cancel, stalled: stalled,
		stall: newPace(t.limits.stall, t.limits.minimum, func() { cancel(stalled) }),
		share: newPace(shareWindow, shareMinimum, t.slow),
	}
	return answer, nil
}

type stallBody struct {
	body         io.ReadCloser
	ctx          context.Context
	cancel       context.CancelCauseFunc
	stalled      *stallError
	stall, share *pace
}

// Read waits for more.
func (b *stallBody) Read(p []byte) (int, error) {
	b.stall.begin()
	b.share.begin()
	n, err := b.body.Read(p)
	b.stall.end(n)
	b.share.end(n)
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(b.ctx), b.stalled) {
		err = b.stalled
	}
	return n, err
}

// Close ends the request.
func (b *stallBody) Close() error {
	b.stall.timer.Stop()
	b.share.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}
