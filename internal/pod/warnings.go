package pod

import "github.com/berth-runtime/berth/internal/warning"

// warn adds warnings to the record of the container. Each one counts once, and is logged once per pod.
func (c *container) warn(list warning.List) {
	c.mu.Lock()
	added := c.rec.Warnings.Append(list...)
	c.changed()
	c.mu.Unlock()
	c.sandbox.noteWarnings(added)
}

// noteWarnings counts warnings, and logs in one line those that nothing of the pod had before.
func (s *sandbox) noteWarnings(added warning.List) {
	if count := s.engine.opts.Warned; count != nil {
		for _, w := range added {
			count(w.Label())
		}
	}
	s.logging.Lock()
	defer s.logging.Unlock()
	if fresh := s.logged.Append(added...); len(fresh) > 0 {
		s.log.Warn("unsupported request accepted", "warnings", fresh)
	}
}
