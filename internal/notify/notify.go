// Package notify tells the service manager how the daemon is.
package notify

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"
)

// variable names the socket on which systemd listens.
const variable = "NOTIFY_SOCKET"

// sendDeadline bounds one message.
const sendDeadline = 5 * time.Second

// Manager is the service manager that has started this process. Nil is none, and
// is told nothing.
type Manager struct{ socket string }

// Find returns the service manager, nil if there is none. Programs that this
// process starts later do not find it.
func Find() (*Manager, error) {
	socket := os.Getenv(variable)
	if socket == "" {
		return nil, nil //nolint:nilnil // nobody is to be told
	}
	if err := os.Unsetenv(variable); err != nil {
		return nil, fmt.Errorf("keep the service manager from others: %w", err)
	}
	return &Manager{socket: socket}, nil
}

// Ready says that the daemon serves.
func (m *Manager) Ready(ctx context.Context) error { return m.tell(ctx, "READY=1") }

// Stopping says that the daemon ends.
func (m *Manager) Stopping(ctx context.Context) error { return m.tell(ctx, "STOPPING=1") }

func (m *Manager) tell(ctx context.Context, state string) error {
	if m == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sendDeadline)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unixgram", m.socket)
	if err != nil {
		return fmt.Errorf("tell the service manager %s: %w", state, err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(sendDeadline)); err != nil {
		return fmt.Errorf("tell the service manager %s: %w", state, err)
	}
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("tell the service manager %s: %w", state, err)
	}
	return nil
}
