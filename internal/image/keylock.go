package image

import (
	"context"
	"sync"
)

// keyedLocks lets one at a time work on a key. Waiting honours the context.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]*keyedLock
}

type keyedLock struct {
	token   chan struct{} // holds one value while the lock is free
	waiting int           // holder included
}

func newKeyedLocks() *keyedLocks { return &keyedLocks{held: map[string]*keyedLock{}} }

// Lock waits until the key is free.
func (k *keyedLocks) Lock(ctx context.Context, key string) error {
	k.mu.Lock()
	l := k.held[key]
	if l == nil {
		l = &keyedLock{token: make(chan struct{}, 1)}
		l.token <- struct{}{}
		k.held[key] = l
	}
	l.waiting++
	k.mu.Unlock()
	select {
	case <-l.token:
		return nil
	case <-ctx.Done():
		k.leave(key, l)
		return context.Cause(ctx)
	}
}

// Unlock gives the key to the next one. The caller must have it.
func (k *keyedLocks) Unlock(key string) {
	k.mu.Lock()
	l := k.held[key]
	k.mu.Unlock()
	l.token <- struct{}{}
	k.leave(key, l)
}

func (k *keyedLocks) leave(key string, l *keyedLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.waiting--; l.waiting == 0 {
		delete(k.held, key)
	}
}
