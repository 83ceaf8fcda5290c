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
)

const (
	// managerCapacity is how many descriptors a Manager keeps.
	managerCapacity = 64
	// maxNotice bounds a message to the service manager, and maxNoticeFDs its descriptors.
	maxNotice, maxNoticeFDs = 4096, 16
)

// Manager does for berthd what systemd does for a service with a descriptor store: it keeps what it is given over the
// socket that it names in the environment, and hands it to the next daemon.
type Manager struct {
	t      testing.TB
	conn   *net.UnixConn
	socket string
	ended  chan struct{}

	mu    sync.Mutex // guards what follows
	store []*os.File // each is called as the daemon called it
}

// newManager listens on a socket for the length of t.
func newManager(t testing.TB, socket string) *Manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &Manager{t: t, conn: conn, socket: socket, ended: make(chan struct{})}
	go m.serve()
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		<-m.ended
		for _, f := range m.store {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
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
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.socket, fmt.Sprintf("FDSTORE=%d", managerCapacity))
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
	data, rights := make([]byte, maxNotice), make([]byte, unix.CmsgSpace(maxNoticeFDs*4))
	for {
		n, rn, _, _, err := m.conn.ReadMsgUnix(data, rights)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		var fds []int
		if err == nil {
			fds, err = descriptors(rights[:rn])
		}
		if err == nil {
			err = m.take(strings.Split(string(data[:n]), "\n"), fds)
		}
		if err != nil {
			m.t.Errorf("the service manager hears %q: %v", data[:n], err)
		}
	}
}

// descriptors unpacks those of a message.
func descriptors(rights []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	var all []int
	for _, message := range messages {
		fds, parseErr := unix.ParseUnixRights(&message)
		all, err = append(all, fds...), errors.Join(err, parseErr)
	}
	return all, err
}

// take does what a message asks for. Whatever else it says, systemd closes descriptors that are not for its store.
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
