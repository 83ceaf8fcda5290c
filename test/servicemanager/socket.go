// Package servicemanager is systemd's end of its protocol for services, for tests: it hears what a service tells it, with
// the descriptors that come along.
package servicemanager

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// messageTimeout bounds the wait for a message.
	messageTimeout = 10 * time.Second
	// maxText bounds a message, maxFDs its descriptors.
	maxText, maxFDs = 4096, 16
)

// Socket is what $NOTIFY_SOCKET names.
type Socket struct {
	// Path is where it is.
	Path string
	conn *net.UnixConn
}

// Listen makes the socket at path, for the length of t.
func Listen(t testing.TB, path string) *Socket {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Socket{Path: path, conn: conn}
}

// Receive waits for a message and returns it with its descriptors, which the caller closes. The error is net.ErrClosed at
// the end.
func (s *Socket) Receive() (text string, fds []int, err error) {
	data, rights := make([]byte, maxText), make([]byte, unix.CmsgSpace(maxFDs*4))
	n, rn, _, _, err := s.conn.ReadMsgUnix(data, rights)
	if err != nil {
		return "", nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	for _, message := range messages {
		some, parseErr := unix.ParseUnixRights(&message)
		fds, err = append(fds, some...), errors.Join(err, parseErr)
	}
	return string(data[:n]), fds, err
}

// Hear returns the next message, which comes soon, and its descriptor, nil without one.
func (s *Socket) Hear(t testing.TB) (string, *os.File) {
	t.Helper()
	if err := s.conn.SetReadDeadline(time.Now().Add(messageTimeout)); err != nil {
		t.Fatal(err)
	}
	text, fds, err := s.Receive()
	if err != nil || len(fds) > 1 {
		t.Fatalf("the service manager hears %q with descriptors %v: %v", text, fds, err)
	}
	if len(fds) == 0 {
		return text, nil
	}
	return text, os.NewFile(uintptr(fds[0]), "kept")
}
