package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/berth-runtime/berth/internal/shim"
)

// exitWait is how long after the end of its output the exit of a container may
// become known.
const exitWait = 10 * time.Second

// Attach connects the streams to a container's own process until the process
// ends, the client leaves or ctx ends. With stdin_once the end of the client's
// input is the end of the container's. Without it, and without a terminal, it is
// the end of the session. Whether there is a terminal and an input is what the container was created with, whatever
// the client asks for.
func (e *Engine) Attach(ctx context.Context, id string, s Streams) error {
	c, err := e.running(id)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	s.Terminal = c.rec.Config.M.GetTty()
	if !c.rec.Config.M.GetStdin() {
		s.Stdin = nil
	}
	a, err := e.opts.Shim.Attach(ctx, c.rec.ID, s.Stdin != nil)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", c, err)
	}
	ended, err := c.carry(ctx, a, s)
	err = errors.Join(err, a.Close()) //nolint:contextcheck // Close has a deadline of its own, for a session that is over
	if err == nil && ended {
		err = c.outputEnded(ctx)
	}
	if err != nil {
		return fmt.Errorf("attach to %s: %w", c, err)
	}
	return nil
}

// carry moves data until there is no more output, or the input ends and with it
// the session. A session that takes only input ends with the client's input or with
// the container. It returns whether it was the end of the output that ended it.
func (c *container) carry(ctx context.Context, a *shim.Attachment, s Streams) (outputEnded bool, err error) {
	stopped := make(chan struct{})
	defer close(stopped)
	var in, out, sizes errgroup.Group
	outputs := newAttachOutputs(a, s)
	if s.Stdin != nil && a.Stdin != nil {
		in.Go(func() error {
			_, err := io.Copy(a.Stdin, s.Stdin)
			switch {
			case c.rec.Config.M.GetStdinOnce():
				err = errors.Join(err, a.CloseStdin(context.WithoutCancel(ctx)))
			case !s.Terminal:
				outputs.endAfter(ctx, a.Stdin)
			}
			return err
		})
	}
	until, exited := &out, (<-chan struct{})(nil)
	if len(outputs.list) == 0 {
		until, exited = &in, c.exited
	}
	if s.Resize != nil && s.Terminal {
		sizes.Go(func() error {
			return s.follow(stopped, func(size Size) error { return a.Resize(ctx, size.Width, size.Height) })
		})
	}
	for _, o := range outputs.list {
		until.Go(o.copy)
	}
	ended := make(chan error, 1)
	go func() { ended <- until.Wait() }() // ends when the attachment is closed at the latest
	select {
	case err := <-ended:
		return until == &out && !outputs.ended.Load(), err
	case <-exited:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// outputEnded returns an error if the output of a session has ended but the
// container has not: the supervisor was replaced without the session.
func (c *container) outputEnded(ctx context.Context) error {
	late := time.NewTimer(exitWait)
	defer late.Stop()
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return fmt.Errorf("output is incomplete: the supervisor has ended the session: %w", errdefs.ErrUnavailable)
	}
}
