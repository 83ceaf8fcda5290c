package supervisor

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// maxUnlogged bounds the deleted containers whose output is kept.
const maxUnlogged = 256

// closeOutput closes the stdio of a container that is being deleted. When the disk of its log hangs, the
// last output waits in its FIFOs, which stay open until it is logged.
func (s *Supervisor) closeOutput(id string, io *stdio) error {
	io.mu.Lock()
	drained := io.drained
	io.mu.Unlock()
	if drained == nil {
		return io.close()
	}
	select {
	case <-drained:
		return io.close()
	default:
	}
	s.mu.Lock()
	kept := s.unlogged < maxUnlogged
	if kept {
		s.unlogged++
	}
	s.mu.Unlock()
	if !kept {
		s.log.Error("last output of a container dropped: too many logs hang", "container", id, "limit", maxUnlogged)
		return io.close()
	}
	io.detach(func(string, *tap) bool { return true })
	s.wg.Go(func() {
		<-drained
		if err := io.close(); err != nil {
			s.log.Error("log of a deleted container not closed", "container", id, "error", err)
		}
		s.mu.Lock()
		s.unlogged--
		s.mu.Unlock()
		s.clients.ifNone(s.leaveIfIdle)
	})
	return nil
}

// checkLogged refuses to go on while the output of deleted containers is not logged.
func (s *Supervisor) checkLogged() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unlogged == 0 {
		return nil
	}
	return fmt.Errorf("the last output of %d deleted containers is not logged yet: %w", s.unlogged, errdefs.ErrUnavailable)
}
