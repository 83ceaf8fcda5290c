package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// silenceError says that a registry did not send anything for too long. It is
// no net.Error with Timeout: the library would try four more times.
type silenceError struct{ limit time.Duration }

// Error says so.
func (e *silenceError) Error() string {
	return fmt.Sprintf("the registry sent nothing for %s", e.limit)
}

// patience gives up on a request when the other side is silent for longer than
// the limit, before the answer or in the middle of it. Only the time that we
// wait counts, not that which we take to write what came.
type patience struct {
	next  http.RoundTripper
	limit time.Duration
	// answered is told who has answered which request.
	answered func(*url.URL)
}

// RoundTrip sends a request and waits for the head of its answer.
func (p *patience) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	silence := &silenceError{limit: p.limit}
	timer := time.AfterFunc(p.limit, func() { cancel(silence) })
	answer, err := p.next.RoundTrip(r.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if errors.Is(context.Cause(ctx), silence) {
			err = silence
		}
		cancel(nil)
		return nil, err
	}
	p.answered(r.URL)
	answer.Body = &patientBody{
		body: answer.Body, ctx: ctx, cancel: cancel, silence: silence,
		timer: time.AfterFunc(p.limit, func() { cancel(silence) }),
	}
	answer.Body.(*patientBody).timer.Stop()
	return answer, nil
}

type patientBody struct {
	body    io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	silence *silenceError
	timer   *time.Timer // runs while Read waits
}

// Read waits for more.
func (b *patientBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.silence.limit)
	n, err := b.body.Read(p)
	b.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(b.ctx), b.silence) {
		err = b.silence
	}
	return n, err
}

// Close ends the request.
func (b *patientBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}
