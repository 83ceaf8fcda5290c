package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Auth is what a registry may ask for. The zero value is anonymous.
type Auth struct {
	// Username and Password, or Auth, their base64 form "user:password".
	Username, Password, Auth string
	// IdentityToken is shown to the token service in place of a password.
	IdentityToken string
	// RegistryToken is a bearer token for the registry itself.
	RegistryToken string
	// ServerAddress limits the account to one host, if it is given.
	ServerAddress string
}

var (
	errAbandoned = errors.New("all callers of the pull have gone")
	errClosed    = fmt.Errorf("the image store is closed: %w", errdefs.ErrUnavailable)
)

// flightKey tells which pulls are the same. With another account the answer
// may be another one, so such a pull is its own; the layers are shared anyway.
type flightKey struct {
	ref  string
	auth Auth
}

// flight is one pull under way.
type flight struct {
	key      flightKey
	named    reference.Named
	progress *progress
	ctx      context.Context
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed once id and err are set and nothing runs any more
	id       string
	err      error

	waiting   int  // guarded by flights.mu
	abandoned bool // guarded by flights.mu
}

// flights are the pulls under way.
type flights struct {
	mu      sync.Mutex
	running map[flightKey]*flight
	started chan struct{} // closed and replaced whenever a pull starts
	closed  bool
	tasks   sync.WaitGroup
}

func (f *flights) init() {
	f.running = map[flightKey]*flight{}
	f.started = make(chan struct{})
}

// wait refuses new pulls and waits for those under way.
func (f *flights) wait() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.tasks.Wait()
}

// Pull fetches an image, unpacks it and returns its ID. Pulls of one reference
// with one account join. A pull ends when the context of everybody who waits
// for it has ended; then, as after any error, nothing of it is left when Pull
// returns, and it can be repeated.
//
// The error is ErrInvalidArgument for a malformed reference, ErrNotFound,
// ErrUnauthenticated or ErrPermissionDenied as the registry says, a
// *RefusedError if a verifier refuses the image,
// ErrFailedPrecondition if the registry sent something else than it promised,
// ErrResourceExhausted if the disk is full, and ErrUnavailable, with a text
// that begins with RegistryUnavailable, if the registry does not work.
func (s *Store) Pull(ctx context.Context, ref string, auth Auth) (string, error) {
	named, err := parseReference(ref)
	if err != nil {
		return "", err
	}
	if _, err := auth.account(); err != nil {
		return "", err
	}
	for {
		if err := ctx.Err(); err != nil {
			return "", fmt.Errorf("pull %s: %w", ref, err)
		}
		f, joined, err := s.join(named, auth)
		if err != nil {
			return "", err
		}
		select {
		case <-f.done:
			if !joined {
				continue // it was being given up; now it is this one's turn
			}
			s.leave(f)
			return f.id, f.err
		case <-ctx.Done():
		}
		if joined && s.leave(f) {
			<-f.done
		}
		stage, age := f.progress.stageNow()
		return "", fmt.Errorf("pull %s: ended while %s for %s: %w", ref, stage, age.Round(time.Millisecond), ctx.Err())
	}
}

// join finds or starts the pull. It does not join one that is being given up:
// then the caller waits for its end and tries again.
func (s *Store) join(named reference.Named, auth Auth) (f *flight, joined bool, err error) {
	key := flightKey{ref: named.String(), auth: auth}
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if s.flights.closed {
		return nil, false, errClosed
	}
	if f := s.flights.running[key]; f != nil {
		if !f.abandoned {
			f.waiting++
		}
		return f, !f.abandoned, nil
	}
	f = &flight{key: key, named: named, progress: newProgress(key.ref), done: make(chan struct{}), waiting: 1}
	f.ctx, f.cancel = context.WithCancelCause(s.ctx)
	s.flights.running[key] = f
	s.flights.tasks.Go(func() { s.fly(f) })
	close(s.flights.started)
	s.flights.started = make(chan struct{})
	return f, true, nil
}

// leave says that one caller waits no more. The last one to go ends the pull.
func (s *Store) leave(f *flight) (last bool) {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	f.waiting--
	if f.waiting > 0 {
		return false
	}
	f.abandoned = true
	f.cancel(errAbandoned)
	return true
}

func (s *Store) fly(f *flight) {
	defer f.cancel(nil)
	begun := time.Now()
	f.id, f.err = s.pull(f)
	if f.err != nil {
		f.err = describe(f.key.ref, f.err)
		f.progress.setStage(StageFailed)
		s.log.Warn("image pull failed", "image", f.key.ref, "duration", time.Since(begun), "error", f.err)
	} else {
		f.progress.setStage(StageDone)
		s.log.Info("image pulled", "image", f.key.ref, "id", f.id, "duration", time.Since(begun))
	}
	s.flights.mu.Lock()
	delete(s.flights.running, f.key)
	s.flights.mu.Unlock()
	close(f.done)
}

// pull asks the hosts that serve the image, and does without one that sends
// something else than it promised as long as there are others.
func (s *Store) pull(f *flight) (string, error) {
	work := s.work.forPull(reference.Domain(f.named))
	registry := newRegistry(s.opts, f.named, f.key.auth, work.markSlow)
	defer registry.close()
	for {
		id, err := s.pullFrom(f, registry, work)
		wrong, ok := errors.AsType[*wrongBytesError](err)
		if !ok || f.ctx.Err() != nil {
			return id, err
		}
		host, more := registry.passOver(wrong.digest, err)
		if !more {
			return "", err
		}
		s.log.Warn("registry host passed over, it sent wrong data", "image", f.key.ref, "host", host, "error", err)
	}
}

func (s *Store) pullFrom(f *flight, registry *registry, work *pullWork) (string, error) {
	target, fetcher, err := registry.resolve(f.ctx, f.key.ref)
	if err != nil {
		return "", err
	}
	if err := s.askVerifiers(f.ctx, f.key.ref, target); err != nil {
		return "", err
	}
	image, err := s.transfer(f.ctx, source{target: target, fetcher: fetcher, work: work, progress: f.progress}, namesOf(f.named, target))
	if err != nil {
		return "", err
	}
	if image.foreign != "" {
		s.log.Warn("image of another platform pulled", "image", f.key.ref, "platform", image.foreign, "node", platforms.Format(s.node))
	}
	return image.id, nil
}

// namesOf returns the names that a pull gives: the reference itself and, as a
// tag can move, the digest that it stood for.
func namesOf(named reference.Named, target ocispec.Descriptor) []string {
	byDigest := named.Name() + "@" + target.Digest.String()
	if ref := named.String(); !strings.Contains(ref, "@") {
		return []string{ref, byDigest}
	}
	return []string{byDigest}
}
