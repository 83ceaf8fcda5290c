// Package notify is the daemon's side of systemd's protocol for services: it says
// how the daemon is, and lets descriptors be kept for the next one.
package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// variable names the socket on which systemd listens.
const variable = "NOTIFY_SOCKET"

// sendDeadline bounds one message.
const sendDeadline = 5 * time.Second

// Manager is the service manager that has started this process. Nil is none, and
// gets no message.
type Manager struct {
	socket string
	store  *Store
}

// Find returns the service manager, nil if there is none. Programs that this
// process starts later do not find it, nor what it hands over. It is called once,
// before any of them is started.
func Find() (_ *Manager, err error) {
	inherited, err := takeInherited()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			inherited.Close()
		}
	}()
	socket, capacity := os.Getenv(variable), os.Getenv(capacityVariable)
	for _, name := range []string{variable, capacityVariable} {
		if err := os.Unsetenv(name); err != nil {
			return nil, fmt.Errorf("keep the service manager from others: %w", err)
		}
	}
	if socket == "" {
		inherited.Close()
		return nil, nil //nolint:nilnil // there is no service manager
	}
	m := &Manager{socket: socket}
	if capacity == "" || capacity == "0" {
		inherited.Close()
		return m, nil
	}
	m.store = &Store{manager: m, inherited: inherited}
	return m, nil
}

// Ready says that the daemon serves.
func (m *Manager) Ready(ctx context.Context) error { return m.tell(ctx, "READY=1", nil) }

// Stopping says that the daemon ends.
func (m *Manager) Stopping(ctx context.Context) error { return m.tell(ctx, "STOPPING=1", nil) }

// tell sends a message, with a duplicate of a descriptor unless file is nil.
func (m *Manager) tell(ctx context.Context, state string, file *os.File) (err error) {
	if m == nil {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("tell the service manager %q: %w", state, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, sendDeadline)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unixgram", m.socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // fails only when it is closed
	defer stop()
	if file == nil {
		_, err = conn.Write([]byte(state))
		return err
	}
	raw, err := file.SyscallConn() // Fd would make the open file blocking for all who have it
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = sendWith(conn, state, int(fd)) }); err != nil {
		return err
	}
	return sent
}

// sendWith sends a message with a descriptor. The methods of net do not do that on
// a datagram socket that is connected, and only such a one says when there is room.
func sendWith(conn net.Conn, state string, fd int) error {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T carries no descriptor: %w", conn, errors.ErrUnsupported)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Write(func(to uintptr) bool {
		sent = unix.Sendmsg(int(to), []byte(state), unix.UnixRights(fd), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return !errors.Is(sent, unix.EAGAIN)
	}); err != nil {
		return err
	}
	return sent
}
