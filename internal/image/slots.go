package image

import (
	"context"
	"sync"
)

// slots bounds how many layers are fetched and unpacked at a time, by all pulls together. A slot is
// never taken away from its holder, so a slow registry is kept from blocking others by what the
// others are entitled to beyond the limit: each pull to one slot, and each registry host to its
// equal share of the slots.
type slots struct {
	size int

	mu      sync.Mutex
	total   int
	hosts   map[string]*hostSlots
	waiting []*slotWaiter // the oldest first
}

type hostSlots struct{ held, waiting int }

type slotWaiter struct {
	pull    *pullSlots
	granted chan struct{} // closed by the grant
}

func newSlots(size int) *slots { return &slots{size: size, hosts: map[string]*hostSlots{}} }

// pullSlots are the slots of one pull. It is the limiter of the unpacker.
type pullSlots struct {
	slots *slots
	host  string
	held  int
}

func (s *slots) forPull(host string) *pullSlots { return &pullSlots{slots: s, host: host} }

// Acquire waits for a slot. The unpacker asks for one at a time.
func (p *pullSlots) Acquire(ctx context.Context, _ int64) error {
	s := p.slots
	w := &slotWaiter{pull: p, granted: make(chan struct{})}
	s.mu.Lock()
	if s.hosts[p.host] == nil {
		s.hosts[p.host] = &hostSlots{}
	}
	s.hosts[p.host].waiting++
	s.waiting = append(s.waiting, w)
	s.grant()
	s.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, other := range s.waiting {
		if other == w {
			s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
			s.hosts[p.host].waiting--
			s.forget(p.host)
			s.grant()
			return context.Cause(ctx)
		}
	}
	return nil // granted meanwhile
}

// Release gives a slot back.
func (p *pullSlots) Release(int64) {
	s := p.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	p.held--
	s.total--
	s.hosts[p.host].held--
	s.forget(p.host)
	s.grant()
}

// forget removes a host without pulls. The caller holds s.mu.
func (s *slots) forget(host string) {
	if h := s.hosts[host]; h.held == 0 && h.waiting == 0 {
		delete(s.hosts, host)
	}
}

// grant gives slots to waiters, those of the host with the fewest slots first. The caller holds s.mu.
func (s *slots) grant() {
	for {
		best := -1
		for i, w := range s.waiting {
			if s.entitled(w.pull) && (best < 0 || s.hosts[w.pull.host].held < s.hosts[s.waiting[best].pull.host].held) {
				best = i
			}
		}
		if best < 0 {
			return
		}
		w := s.waiting[best]
		s.waiting = append(s.waiting[:best], s.waiting[best+1:]...)
		host := s.hosts[w.pull.host]
		host.waiting--
		host.held++
		w.pull.held++
		s.total++
		close(w.granted)
	}
}

func (s *slots) entitled(p *pullSlots) bool {
	return s.total < s.size || p.held == 0 || s.hosts[p.host].held < s.size/len(s.hosts)
}
