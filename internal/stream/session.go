package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// endGrace is how long a session that was asked to end has for its last words
// before its connection is closed.
const endGrace = 2 * time.Second

// Why sessions end although neither side wished it.
var (
	errOwnerGone = errors.New("the container or pod was removed")
	errShutdown  = errors.New("the daemon is shutting down")
	errOver      = errors.New("the session is over")
)

// session is one exec, attach or port-forward in progress.
type session struct {
	kind, owner string
	// ctx ends when the session has to; its cause says why.
	ctx    context.Context
	cancel context.CancelCauseFunc
	// idle ends the session when nothing moves.
	idle *idleWatch

	// mu guards what follows, and that nothing joins work once ctx has ended.
	mu sync.Mutex
	// work counts the goroutines that forward ports for the session.
	work sync.WaitGroup
	// conn is nil until the protocol library has taken over the connection.
	conn *clientConn
	// failure is what went wrong with the work itself.
	failure error
	// lastWords cuts the connection when a session that was asked to end takes too long.
	lastWords *time.Timer
}

// adopt makes raw the session's connection.
func (s *session) adopt(raw net.Conn) *clientConn {
	conn := newClientConn(raw, s.idle.limit, s.cancel)
	s.mu.Lock()
	s.conn = conn
	s.mu.Unlock()
	return conn
}

// over says that the work is done, well or not; what is left is to tell the
// client.
func (s *session) over(failure error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = failure
	s.cancel(errOver)
}

// outcome answers what went wrong with the work, and why the session ended
// before it was done; both may be nil.
func (s *session) outcome() (failure, interrupted error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cause := context.Cause(s.ctx); !errors.Is(cause, errOver) {
		interrupted = cause
	}
	return s.failure, interrupted
}

// enter counts one more goroutine of the session's work; the caller calls
// work.Done. It refuses once the session has to end.
func (s *session) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.work.Add(1)
	return true
}

// stop tells the session to end because of cause. It does not wait. The client
// has endGrace to take the outcome; a connection that is cut while streams are
// being opened leaves both ends waiting for replies.
func (s *session) stop(cause error) {
	s.cancel(cause)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastWords == nil {
		s.lastWords = time.AfterFunc(endGrace, s.endWords)
	}
}

// endWords closes the connection, and does not wait any longer for a client that
// takes the end of the output slowly.
func (s *session) endWords() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.conn == nil:
	case s.conn.isClosing():
		s.conn.finish()
	default:
		_ = s.conn.Close() // Never fails; see clientConn.
		s.lastWords.Reset(lingerTime)
	}
}

// hangUp closes the connection, if there is one yet.
func (s *session) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close() // Never fails; see clientConn.
	}
}

// cut closes the connection at once.
func (s *session) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.finish()
	}
}

// finish closes the connection and waits until it is closed and all that the
// session started has ended.
func (s *session) finish() {
	s.idle.stop()
	s.cancel(errOver)
	s.hangUp()
	s.work.Wait()
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	if conn != nil {
		<-conn.closed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastWords != nil {
		s.lastWords.Stop()
	}
}

// sessions are those in progress.
type sessions struct {
	// limit is how long nothing may move on a session.
	limit time.Duration

	mu sync.Mutex
	// open is every session between begin and remove.
	open map[*session]struct{}
	// closed refuses new sessions.
	closed bool
	// idle is closed when closed is set and the last session has ended.
	idle chan struct{}
}

func newSessions(limit time.Duration) *sessions {
	return &sessions{open: make(map[*session]struct{}), limit: limit, idle: make(chan struct{})}
}

// begin opens a session, or refuses with an [errdefs.ErrUnavailable] once the
// server shuts down.
func (ss *sessions) begin(ctx context.Context, kind, owner string) (*session, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.closed {
		return nil, fmt.Errorf("begin %s: %w: %w", kind, errShutdown, errdefs.ErrUnavailable)
	}
	s := &session{kind: kind, owner: owner}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.idle = watchIdle(ss.limit, s.stop)
	ss.open[s] = struct{}{}
	return s, nil
}

// remove drops a session that is finished.
func (ss *sessions) remove(s *session) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	delete(ss.open, s)
	if ss.closed && len(ss.open) == 0 {
		close(ss.idle)
	}
}

// of answers the open sessions of owner; "" is every session.
func (ss *sessions) of(owner string) []*session {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	var found []*session
	for s := range ss.open {
		if owner == "" || s.owner == owner {
			found = append(found, s)
		}
	}
	return found
}

// close refuses sessions from now on. Its channel is closed when the last one
// has ended.
func (ss *sessions) close() <-chan struct{} {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if !ss.closed {
		ss.closed = true
		if len(ss.open) == 0 {
			close(ss.idle)
		}
	}
	return ss.idle
}
