package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/berth-runtime/berth/internal/shim"
)

// Attach connects the streams to a container's own process until the process
// ends, the client leaves or ctx ends. With stdin_once the end of the client's
// input is the end of the container's.
func (e *Engine) Attach(ctx context.Context, id string, s Streams) error {
	c, err := e.running(id)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if s.Terminal != c.rec.Config.M.GetTty() {
		return fmt.Errorf("attach to %s: tty is %t, the container's is %t: %w", c, s.Terminal, c.rec.Config.M.GetTty(), errdefs.ErrInvalidArgument)
	}
	if s.Stdin != nil && !c.rec.Config.M.GetStdin() {
		return fmt.Errorf("attach to %s: stdin is asked for, but the container was created without: %w", c, errdefs.ErrInvalidArgument)
	}
	a, err := e.opts.Shim.Attach(ctx, c.rec.ID, s.Stdin != nil)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", c, err)
	}
	err = errors.Join(c.carry(ctx, a, s), a.Close()) //nolint:contextcheck // Close has a deadline of its own, for a session that is over
	if err != nil {
		return fmt.Errorf("attach to %s: %w", c, err)
	}
	return nil
}

// carry moves data until there is no more output. A session that takes only
// input ends with the client's input or with the container.
func (c *container) carry(ctx context.Context, a *shim.Attachment, s Streams) error {
	stopped := make(chan struct{})
	defer close(stopped)
	var in, out, sizes errgroup.Group
	if s.Stdin != nil && a.Stdin != nil {
		in.Go(func() error {
			_, err := io.Copy(a.Stdin, s.Stdin)
			if c.rec.Config.M.GetStdinOnce() {
				err = errors.Join(err, a.CloseStdin(context.WithoutCancel(ctx)))
			}
			return err
		})
	}
	until, exited := &out, (<-chan struct{})(nil)
	if s.Stdout == nil && s.Stderr == nil {
		until, exited = &in, c.exited
	}
	if s.Resize != nil && s.Terminal {
		sizes.Go(func() error {
			return follow(s.Resize, stopped, func(size Size) error { return a.Resize(ctx, size.Width, size.Height) })
		})
	}
	for _, o := range []struct {
		to   io.Writer
		from *os.File
	}{{s.Stdout, a.Stdout}, {s.Stderr, a.Stderr}} {
		if o.to != nil && o.from != nil {
			until.Go(func() error { _, err := io.Copy(o.to, o.from); return err })
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- until.Wait() }() // ends when the attachment is closed at the latest
	select {
	case err := <-ended:
		return err
	case <-exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
