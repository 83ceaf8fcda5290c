package image

import (
	"context"
	"sync"
	"time"
)

// Pulls that need the same layer at the same time share its fetch: one holds it, the others wait.
// They do so only behind a pull from the same registry host that is not slow, so that an image
// which names the layers of another one cannot hold it up.
const (
	// A pull is slow when less than shareMinimum bytes arrive in shareWindow.
	shareWindow  = 5 * time.Second
	shareMinimum = 5 * 16 << 10
)

// sharedWork is what pulls do at most once at a time, by key.
type sharedWork struct {
	mu   sync.Mutex
	held map[string]*sharedHold
}

type sharedHold struct {
	by   *pullWork
	free chan struct{} // closed when it is released
}

func newSharedWork() *sharedWork { return &sharedWork{held: map[string]*sharedHold{}} }

// pullWork is the part of one pull. It is the duplication suppressor of the unpacker.
type pullWork struct {
	work *sharedWork
	host string
	slow chan struct{} // closed when the others shall not wait
	once sync.Once

	mu   sync.Mutex
	held map[string]*sharedHold
}

func (s *sharedWork) forPull(host string) *pullWork {
	return &pullWork{work: s, host: host, slow: make(chan struct{}), held: map[string]*sharedHold{}}
}

// markSlow lets the other pulls pass.
func (p *pullWork) markSlow() { p.once.Do(func() { close(p.slow) }) }

// Lock waits until no other pull that is worth waiting for has the key.
func (p *pullWork) Lock(ctx context.Context, key string) error {
	for {
		hold := p.take(key)
		if hold == nil {
			return nil
		}
		slow := hold.by.slow
		if hold.by == p {
			slow = nil // twice in one image
		}
		select {
		case <-hold.free:
		case <-slow:
			p.work.pass(p.host+" "+key, hold)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// take takes the key, or returns who has it.
func (p *pullWork) take(key string) *sharedHold {
	p.work.mu.Lock()
	defer p.work.mu.Unlock()
	if hold := p.work.held[p.host+" "+key]; hold != nil {
		return hold
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if hold := p.held[key]; hold != nil {
		return hold // passed by another pull
	}
	hold := &sharedHold{by: p, free: make(chan struct{})}
	p.work.held[p.host+" "+key] = hold
	p.held[key] = hold
	return nil
}

// pass lets others have a key that a slow pull holds.
func (s *sharedWork) pass(key string, hold *sharedHold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[key] == hold {
		delete(s.held, key)
	}
}

// Unlock releases the key. The caller must have it.
func (p *pullWork) Unlock(key string) {
	p.mu.Lock()
	hold := p.held[key]
	delete(p.held, key)
	p.mu.Unlock()
	p.work.pass(p.host+" "+key, hold)
	close(hold.free)
}
