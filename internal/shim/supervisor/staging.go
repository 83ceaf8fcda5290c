package supervisor

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/shim/wire"
)

const (
	// maxStaged bounds the calls that have staged descriptors, maxStagedOfPod those of one pod, where
	// attachments count by themselves: a burst of them refuses no exec.
	maxStaged      = 1024
	maxStagedOfPod = 64
	// stagedLife is how long staged descriptors wait for the other half of their call.
	stagedLife = 10 * time.Second
	// maxAbandoned bounds the abandoned calls that are remembered.
	maxAbandoned = 1024
)

// staging has the descriptors that wait for the other half of a call: stdio of an exec that is about
// to be requested, and the ends of an attachment that the client is about to fetch.
type staging struct {
	mu    sync.Mutex
	calls map[string]*stagedCall
	byPod map[string]int
	// abandoned are the last calls that were abandoned, the oldest first.
	abandoned []string
}

// stagedCall are the descriptors of one call.
type stagedCall struct {
	pod    string
	files  wire.Files
	expiry *time.Timer
}

func newStaging() *staging {
	return &staging{calls: map[string]*stagedCall{}, byPod: map[string]int{}}
}

// put stages files under name, which is closed after an error. When they have expired, expired is
// called unless it is nil.
func (s *staging) put(name, pod string, files wire.Files, expired func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	switch {
	case slices.Contains(s.abandoned, name):
		err = fmt.Errorf("the call %s was abandoned: %w", name, errdefs.ErrUnavailable)
	case s.calls[name] != nil:
		err = fmt.Errorf("descriptors are staged under %s already: %w", name, errdefs.ErrAlreadyExists)
	case s.byPod[pod] >= maxStagedOfPod:
		err = fmt.Errorf("%d calls to pod %s have staged descriptors: %w", s.byPod[pod], strings.TrimPrefix(pod, stagedAttachment), errdefs.ErrResourceExhausted)
	case len(s.calls) >= maxStaged:
		err = fmt.Errorf("%d calls have staged descriptors: %w", len(s.calls), errdefs.ErrResourceExhausted)
	}
	if err != nil {
		files.Close()
		return err
	}
	call := &stagedCall{pod: pod, files: files}
	s.calls[name] = call
	s.byPod[pod]++
	call.expiry = time.AfterFunc(stagedLife, func() {
		if s.expire(name, call) && expired != nil {
			expired()
		}
	})
	return nil
}

// take returns what is staged under name, and nil if nothing is. The caller closes it.
func (s *staging) take(name string) wire.Files {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := s.calls[name]
	if call == nil {
		return nil
	}
	s.removeLocked(name, call)
	return call.files
}

// abandon closes what is staged under name. The call itself may come later than that it was abandoned:
// then it stages nothing.
func (s *staging) abandon(name string) {
	s.take(name).Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.abandoned) == maxAbandoned {
		s.abandoned = slices.Delete(s.abandoned, 0, maxAbandoned/2)
	}
	s.abandoned = append(s.abandoned, name)
}

func (s *staging) expire(name string, call *stagedCall) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls[name] != call {
		return false
	}
	s.removeLocked(name, call)
	call.files.Close()
	return true
}

func (s *staging) removeLocked(name string, call *stagedCall) {
	call.expiry.Stop()
	delete(s.calls, name)
	if s.byPod[call.pod]--; s.byPod[call.pod] == 0 {
		delete(s.byPod, call.pod)
	}
}

// clear closes everything, for the session that staged it has ended.
func (s *staging) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, call := range s.calls {
		s.removeLocked(name, call)
		call.files.Close()
	}
}
