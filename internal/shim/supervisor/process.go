package supervisor

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/proc"
)

// unknownCode is the exit code of a process whose status could not be learned.
const unknownCode = 255

// process is a container's init or an exec, from its start until it is forgotten.
type process struct {
	pid     int
	started uint64
	group   int // its process group when it was first seen, 0 if it never was
	// onExit is called once, with the outcome in place, before done is closed. It may
	// be called with the reaper's lock held, so it must not wait for a child.
	onExit func(p *process)
	done   chan struct{}

	mu     sync.Mutex // guards what follows
	pidfd  *os.File   // nil when it ended before it could be opened
	gone   bool       // it was not found by this process
	ended  bool
	status uint32
	known  bool
	reason string
	at     time.Time
}

func newProcess(onExit func(*process)) *process {
	return &process{onExit: onExit, done: make(chan struct{})}
}

// exited records the outcome; the first one counts.
func (p *process) exited(status uint32) { p.end(status, true, "", time.Now()) }

func (p *process) end(status uint32, known bool, reason string, at time.Time) {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return
	}
	p.ended, p.status, p.known, p.reason, p.at = true, status, known, reason, at
	p.mu.Unlock()
	if p.onExit != nil {
		p.onExit(p)
	}
	close(p.done)
}

// startedBy returns now, or when the process ended if that was earlier.
func (p *process) startedBy(now time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended && p.at.Before(now) {
		return p.at
	}
	return now
}

// outcome returns exit code, signal and whether they are known. It is valid once done is closed.
func (p *process) outcome() (code, sig int, known bool, reason string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known {
		return unknownCode, 0, false, p.reason, p.at
	}
	code, sig = decode(p.status)
	return code, sig, true, "", p.at
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// fd returns the pidfd, nil when there is none.
func (p *process) fd() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pidfd
}

// lost tells whether nothing in this process will ever learn how p ended.
func (p *process) lost() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone && !p.ended
}

// close releases the pidfd. A goroutine that watches the process ends with it.
func (p *process) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd != nil {
		_ = p.pidfd.Close()
		p.pidfd = nil
	}
}

// follow learns of the end of a process that was started by the OCI runtime just
// now (started is 0) or by a predecessor. It returns false when the process is
// gone and only a pidfd that another process holds can tell its status.
func (s *Supervisor) follow(p *process) bool {
	found := s.tryFollow(p)
	p.mu.Lock()
	p.gone = !found
	p.mu.Unlock()
	return found
}

func (s *Supervisor) tryFollow(p *process) bool {
	w := &watcher{p.exited}
	stat, ours := s.children.adopt(p.pid, w)
	switch {
	case stat.PID == 0: // ended: reported by adopt, or reaped by another process
		return ours
	case p.started == 0:
		p.started = stat.Started
	case stat.Started != p.started: // the ID belongs to another process by now
		s.children.disown(p.pid, w)
		return false
	}
	p.group = stat.Group
	pidfd, err := proc.Open(p.pid, p.started)
	if err != nil {
		if ours {
			return true // the reaper reports a child, also without a pidfd
		}
		s.children.disown(p.pid, w)
		return !p.running() // it became a child just now, and the reaper has reported it
	}
	p.mu.Lock()
	p.pidfd = pidfd
	p.mu.Unlock()
	if !ours {
		s.watch(p, pidfd, w)
	}
	return true
}

// watch waits for a process that is not a child of this one, or was not yet.
func (s *Supervisor) watch(p *process, pidfd *os.File, w *watcher) {
	s.wg.Go(func() {
		err := proc.Wait(pidfd)
		status, statusErr := proc.ExitStatus(pidfd, p.pid, p.started)
		s.children.disown(p.pid, w) // if it became a child and was reaped, p knows by now
		switch {
		case err != nil: // closed: no waiter is left
		case statusErr != nil:
			p.end(0, false, statusErr.Error(), time.Now())
		default:
			p.exited(status)
		}
	})
}

// expectEnd sees to it that the end of a killed process is reported, also if its
// parent, which is not this process any more, does not reap what is needed for
// it: see proc.Released.
func (s *Supervisor) expectEnd(ctx context.Context, p *process) {
	pidfd := p.fd()
	if pidfd == nil || !p.running() {
		return
	}
	s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		if proc.AwaitEnd(ctx, pidfd) != nil {
			return // its waiter reports that
		}
		if status, err := proc.ExitStatus(pidfd, p.pid, p.started); err == nil {
			p.exited(status)
		}
	})
}

// learn asks a pidfd how its process ended.
func (s *Supervisor) learn(p *process, pidfd *os.File) {
	status, err := proc.ExitStatus(pidfd, p.pid, p.started)
	if err != nil {
		p.end(0, false, err.Error(), time.Now())
		return
	}
	p.exited(status)
}

// followChild is follow for a process that an OCI runtime has just left behind.
func (s *Supervisor) followChild(p *process) error {
	if !s.follow(p) {
		return fmt.Errorf("process %d did not become a child of the supervisor: %w", p.pid, errdefs.ErrInternal)
	}
	return nil
}
