package shim

import (
	"context"

	"github.com/berth-runtime/berth/internal/shim/wire"
)

// Checkpoint writes the processes of a running container down. Nil means that
// the images are complete. In any case the container goes on as it was: running,
// or frozen if it was. An error quotes CRIU.
func (c *Client) Checkpoint(ctx context.Context, req CheckpointRequest) error {
	if req.Deadline <= 0 {
		req.Deadline = DefaultDeadline
	}
	ctx, cancel := context.WithTimeout(ctx, req.Deadline+runtimeMargin)
	defer cancel()
	_, err := invoke(ctx, c, "checkpoint container "+req.ID, func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.Checkpoint(ctx, &wire.CheckpointRequest{
			Id: req.ID, Images: req.Images, Work: req.Work, DeadlineNano: int64(req.Deadline),
		})
	})
	return err
}

// onWire is the restore in a message; nil is none.
func (r *Restore) onWire() *wire.Restore {
	if r == nil {
		return nil
	}
	return &wire.Restore{Images: r.Images, LsmProfile: r.LSMProfile, LsmMountContext: r.LSMMountContext}
}
