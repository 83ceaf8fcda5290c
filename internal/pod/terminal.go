package pod

import (
	"context"
	"time"
)

// sizeWait is how long a command waits for the size of its terminal. A client that
// knows the size sends it as soon as its streams are open.
const sizeWait = 250 * time.Millisecond

// firstSize waits for the first size, so that the process starts with it. It
// returns nil if none comes in time.
func firstSize(ctx context.Context, sizes <-chan Size) *Size {
	if sizes == nil {
		return nil
	}
	late := time.NewTimer(sizeWait)
	defer late.Stop()
	select {
	case size, ok := <-sizes:
		if ok {
			return &size
		}
	case <-late.C:
	case <-ctx.Done():
	}
	return nil
}

// follow applies terminal sizes until the session has stopped. The first is applied
// again, for OCI runtimes that ignore the size in the process. A terminal that is
// gone takes no size; that is no failure of the session.
func (s Streams) follow(stopped <-chan struct{}, set func(Size) error) error {
	if s.size != nil {
		if err := set(*s.size); err != nil {
			return err
		}
	}
	for {
		select {
		case size, ok := <-s.Resize:
			if !ok {
				return nil
			}
			if err := set(size); err != nil {
				return err
			}
		case <-stopped:
			return nil
		}
	}
}
