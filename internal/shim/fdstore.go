package shim

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/berth-runtime/berth/internal/notify"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

const (
	// shelfPatience bounds how long a start waits for the service manager.
	shelfPatience = time.Second
	// minShelfPause and maxShelfPause bound the time between two attempts to tell it something.
	minShelfPause = 50 * time.Millisecond
	maxShelfPause = 30 * time.Second
	// shelfNameLength is how much of a hash tells containers apart. All names of a
	// store have to fit into one environment variable, for which Linux has 128 KiB:
	// with 9 bytes each and a colon that is room for 13,000 descriptors.
	shelfNameLength = 8
)

// shelfKinds are the ends of names, by kind of descriptor.
var shelfKinds = map[string]string{wire.Pidfd: "p", wire.Console: "c", wire.Stdin: "i", wire.Stdout: "o", wire.Stderr: "e"}

// shelfName is how a descriptor of a container is called in the store. IDs are not
// short enough. Nothing else is in the store, so the hash needs no more bits than
// to tell apart the containers of one node.
func shelfName(id, kind string) string {
	sum := sha256.Sum256([]byte(id))
	return base64.RawURLEncoding.EncodeToString(sum[:])[:shelfNameLength] + shelfKinds[kind]
}

// fdStore is the third copy of the descriptors of containers: in the descriptor store of
// the service manager, for the case that daemon and supervisor die at once. No request
// waits for a manager that hangs: one goroutine tells it what it is to keep and to
// drop, in order, and again until it has arrived.
type fdStore struct {
	store *notify.Store // nil if there is none; then fdStore is empty
	log   *slog.Logger

	mu sync.Mutex // guards what follows
	// stored are the names that the manager has, or may have.
	stored map[string]bool
	// pending are operations that it has not received yet, by name; queue has their names in
	// order. There is at most one for each name that is kept, or is to be dropped.
	pending map[string]*pendingOp
	queue   []string
	// inFlight is the operation that the goroutine is sending. It ends it, in any case.
	inFlight *pendingOp
	// stuck tells that the last attempt failed.
	stuck bool
	news  chan struct{}
}

// pendingOp is an operation for the manager.
type pendingOp struct {
	file *os.File // to be kept; nil: to be dropped
	done chan struct{}
}

func (e *pendingOp) end() {
	if e.file != nil {
		_ = e.file.Close()
	}
	close(e.done)
}

func newFDStore(store *notify.Store, log *slog.Logger) *fdStore {
	return &fdStore{
		store: store, log: log,
		stored: map[string]bool{}, pending: map[string]*pendingOp{}, news: make(chan struct{}, 1),
	}
}

// claim returns what a predecessor has left of the containers with these IDs. What
// it has left of others is dropped.
func (s *fdStore) claim(left notify.Inherited, ids []string) map[string]wire.Files {
	claimed := map[string]wire.Files{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range left {
		s.stored[name] = true
	}
	for _, id := range ids {
		files := wire.Files{}
		for kind := range shelfKinds {
			name := shelfName(id, kind)
			if f := left[name]; f != nil {
				files[kind] = f
				delete(left, name)
			}
		}
		if len(files) > 0 {
			claimed[id] = files
		}
	}
	for name, f := range left {
		_ = f.Close()
		s.dropLocked(name)
	}
	return claimed
}

// keep makes files what the store has of a container; none drops all that it has.
func (s *fdStore) keep(id string, files wire.Files) {
	if s.store == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for kind := range shelfKinds {
		name := shelfName(id, kind)
		if files[kind] == nil {
			s.dropLocked(name)
			continue
		}
		if e := s.pending[name]; e != nil && e.file != nil || e == nil && s.stored[name] {
			continue // it has one of the same open file, or of the same process
		}
		dup, err := wire.Dup(files[kind])
		if err != nil {
			s.log.Warn("keep a third copy of a descriptor", "container", id, "kind", kind, "error", err)
			continue
		}
		s.sendLocked(name, dup)
	}
}

func (s *fdStore) dropLocked(name string) {
	e := s.pending[name]
	switch {
	case e != nil && e.file == nil: // about to be sent
	case s.stored[name]:
		s.sendLocked(name, nil)
	case e != nil: // the manager has never heard of it
		delete(s.pending, name)
		s.queue = slices.DeleteFunc(s.queue, func(queued string) bool { return queued == name })
		e.end()
	}
}

// sendLocked notes what to tell the manager of a name, instead of what was noted before.
func (s *fdStore) sendLocked(name string, file *os.File) {
	switch e := s.pending[name]; e {
	case nil:
		s.queue = append(s.queue, name)
	case s.inFlight:
	default:
		e.end()
	}
	s.pending[name] = &pendingOp{file: file, done: make(chan struct{})}
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// await returns when the manager has the descriptors of a container, at once if it hangs.
func (s *fdStore) await(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, shelfPatience)
	defer cancel()
	for kind := range shelfKinds {
		s.mu.Lock()
		e, stuck := s.pending[shelfName(id, kind)], s.stuck
		s.mu.Unlock()
		if e == nil || stuck {
			continue
		}
		select {
		case <-e.done:
		case <-ctx.Done():
			return
		}
	}
}

// run tells the manager until ctx ends.
func (s *fdStore) run(ctx context.Context) {
	if s.store == nil {
		return
	}
	for pause := minShelfPause; ; {
		name, e := s.next()
		if e == nil {
			select {
			case <-s.news:
				continue
			case <-ctx.Done():
				return
			}
		}
		var err error
		if e.file != nil {
			err = s.store.Keep(ctx, name, e.file)
		} else {
			err = s.store.Drop(ctx, name)
		}
		s.finished(name, e, err)
		if err == nil {
			pause = minShelfPause
			continue
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, maxShelfPause)
		case <-ctx.Done():
			return
		}
	}
}

// next returns the first operation, nil if there is none.
func (s *fdStore) next() (string, *pendingOp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return "", nil
	}
	name := s.queue[0]
	s.inFlight = s.pending[name]
	s.stored[name] = true // it may have arrived even if that seems to fail
	return name, s.inFlight
}

// finished records the outcome of an operation. One that failed stays, unless there is a newer one.
func (s *fdStore) finished(name string, e *pendingOp, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight = nil
	if err != nil && !s.stuck {
		s.log.Warn("keep descriptors with the service manager", "error", err)
	}
	s.stuck = err != nil
	if s.pending[name] != e {
		e.end()
		return
	}
	if err != nil {
		return
	}
	s.queue = s.queue[1:]
	delete(s.pending, name)
	if e.file == nil {
		delete(s.stored, name)
	}
	e.end()
}

// close forgets pending operations: the next daemon looks itself.
// Preconditions: run has returned.
func (s *fdStore) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.pending {
		e.end()
	}
	clear(s.pending)
	s.queue = nil
}
