package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
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
	stopped := make(chan struct{})
	var in, out errgroup.Group
	if s.Stdin != nil && a.Stdin != nil {
		in.Go(func() error {
			_, err := io.Copy(a.Stdin, s.Stdin)
			if c.rec.Config.M.GetStdinOnce() {
				err = errors.Join(err, a.CloseStdin(context.WithoutCancel(ctx)))
			}
			return err
		})
	}
	if s.Resize != nil && s.Terminal {
		in.Go(func() error {
			return follow(s.Resize, stopped, func(size Size) error { return a.Resize(ctx, size.Width, size.Height) })
		})
	}
	for _, o := range []struct {
		to   io.Writer
		from *os.File
	}{{s.Stdout, a.Stdout}, {s.Stderr, a.Stderr}} {
		if o.to != nil && o.from != nil {
			out.Go(func() error { _, err := io.Copy(o.to, o.from); return err })
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- out.Wait() }() // ends when the attachment is closed, below at the latest
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = ctx.Err()
	}
	close(stopped)
	err = errors.Join(err, a.Close()) //nolint:contextcheck // it has a deadline of its own, for a session that is over
	if err != nil {
		return fmt.Errorf("attach to %s: %w", c, err)
	}
	return nil
}
