package pod

import (
	"context"
	"fmt"
)

// ReopenLog has the supervisor open the log file again, after kubelet has renamed
// it. No line is lost, and on an error no file was made.
func (e *Engine) ReopenLog(ctx context.Context, id string) error {
	c, err := e.running(id)
	if err != nil {
		return fmt.Errorf("reopen log: %w", err)
	}
	if err := e.opts.Shim.ReopenLog(ctx, c.rec.ID); err != nil {
		return fmt.Errorf("reopen log of %s: %w", c, err)
	}
	return nil
}
