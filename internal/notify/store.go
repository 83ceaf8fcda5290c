package notify

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// capacityVariable says how many descriptors the service manager keeps. Systemd
// sets it since version 254; the unit does so for older ones.
const capacityVariable = "FDSTORE"

// Variables that say what the service manager hands over.
const (
	listenPID   = "LISTEN_PID"
	listenFDs   = "LISTEN_FDS"
	listenNames = "LISTEN_FDNAMES"
	listenPIDFD = "LISTEN_PIDFDID"
)

// firstInherited is the first descriptor that is handed over.
const firstInherited = 3

// Store keeps descriptors while no daemon runs and hands them to the next one. What
// is in it stays there until it is dropped.
type Store struct {
	manager   *Manager
	inherited Inherited
}

// Inherited are descriptors by the names under which they were kept.
type Inherited map[string]*os.File

// Close closes all of them.
func (i Inherited) Close() {
	for _, f := range i {
		_ = f.Close()
	}
}

// Store returns the manager's store, nil if there is none.
func (m *Manager) Store() *Store {
	if m == nil {
		return nil
	}
	return m.store
}

// Take returns what was kept when this process was started. The first caller gets
// it all, and closes it.
func (s *Store) Take() Inherited {
	taken := s.inherited
	s.inherited = nil
	return taken
}

// Keep gives a duplicate of a descriptor into the store. Nil means that the manager
// will know of it before it knows of this process's end. It watches nothing: what
// has ended is kept as well.
func (s *Store) Keep(ctx context.Context, name string, file *os.File) error {
	return s.manager.tell(ctx, "FDSTORE=1\nFDPOLL=0\nFDNAME="+name, file)
}

// Drop takes everything under a name out of the store.
func (s *Store) Drop(ctx context.Context, name string) error {
	return s.manager.tell(ctx, "FDSTOREREMOVE=1\nFDNAME="+name, nil)
}

// takeInherited returns the descriptors that were handed over to this process. Of
// two with one name the first counts.
func takeInherited() (Inherited, error) {
	pid, count, names := os.Getenv(listenPID), os.Getenv(listenFDs), os.Getenv(listenNames)
	for _, name := range []string{listenPID, listenFDs, listenNames, listenPIDFD} {
		if err := os.Unsetenv(name); err != nil {
			return nil, fmt.Errorf("keep inherited descriptors from others: %w", err)
		}
	}
	if pid != strconv.Itoa(os.Getpid()) { // for another process, or none
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("%s %q is not a number of descriptors: %w", listenFDs, count, errdefs.ErrInvalidArgument)
	}
	// All of them first: whatever fails, no child gets one.
	for fd := firstInherited; fd < firstInherited+n; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("%s %q is more than there are: %w", listenFDs, count, err)
		}
	}
	inherited := Inherited{}
	for fd := firstInherited; fd < firstInherited+n; fd++ {
		name, others, _ := strings.Cut(names, ":")
		names = others
		file := os.NewFile(uintptr(fd), name)
		if _, twice := inherited[name]; twice {
			_ = file.Close()
			continue
		}
		inherited[name] = file
	}
	return inherited, nil
}
