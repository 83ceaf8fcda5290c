package harness

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/servicemanager"
)

// managerCapacity is how many descriptors a Manager keeps.
const managerCapacity = 64

// Manager does for berthd what systemd does for a service with a descriptor store: it keeps what it is given over the
// socket that it names in the environment, and hands it to the next daemon.
type Manager struct {
	t      testing.TB
	socket *servicemanager.Socket
	ended  chan struct{}

	mu    sync.Mutex // guards what follows
	store []*os.File // each is called as the daemon called it
}

// newManager listens on a socket for the length of t.
func newManager(t testing.TB, socket string) *Manager {
	t.Helper()
	m := &Manager{t: t, ended: make(chan struct{})}
	t.Cleanup(func() { // after the socket's own
		if m.socket == nil {
			return // there was none
		}
		<-m.ended
		for _, f := range m.store {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	m.socket = servicemanager.Listen(t, socket)
	go m.serve()
	return m
}

// Kept are the names of what is in the store.
func (m *Manager) Kept() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, f := range m.store {
		names = append(names, f.Name())
	}
	return names
}

// prepare lets a daemon find the manager, and hands over what is in the store. Once the daemon is started, what it returns
// is called.
func (m *Manager) prepare(cmd *exec.Cmd) (started func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.socket.Path, fmt.Sprintf("FDSTORE=%d", managerCapacity))
	if len(m.store) == 0 {
		return func() {}
	}
	var handed []*os.File
	var names []string
	for _, f := range m.store {
		// The file is not polled, so Fd does not change its mode.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		handed, names = append(handed, os.NewFile(uintptr(fd), f.Name())), append(names, f.Name())
	}
	cmd.ExtraFiles = handed
	cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(handed)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	// Only the process itself knows its ID before it executes the daemon.
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	return func() {
		for _, f := range handed {
			if err := f.Close(); err != nil {
				m.t.Error(err)
			}
		}
	}
}

func (m *Manager) serve() {
	defer close(m.ended)
	for {
		text, fds, err := m.socket.Receive()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			err = m.take(strings.Split(text, "\n"), fds)
		}
		if err != nil {
			m.t.Errorf("the service manager hears %q: %v", text, err)
		}
	}
}

// take handles a message. systemd closes descriptors that are not for its store.
func (m *Manager) take(lines []string, fds []int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var name string
	for _, line := range lines {
		if value, ok := strings.CutPrefix(line, "FDNAME="); ok {
			name = value
		}
	}
	// Without FDPOLL=0 systemd drops descriptors that hang up.
	if slices.Contains(lines, "FDSTORE=1") && slices.Contains(lines, "FDPOLL=0") && name != "" && len(m.store)+len(fds) <= managerCapacity {
		for _, fd := range fds {
			m.store = append(m.store, os.NewFile(uintptr(fd), name))
		}
		return nil
	}
	var errs []error
	for _, fd := range fds {
		errs = append(errs, errors.New("a descriptor is not for the store"), unix.Close(fd))
	}
	if slices.Contains(lines, "FDSTOREREMOVE=1") {
		m.store = slices.DeleteFunc(m.store, func(f *os.File) bool {
			if f.Name() != name {
				return false
			}
			errs = append(errs, f.Close())
			return true
		})
	}
	return errors.Join(errs...)
}
