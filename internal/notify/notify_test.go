package notify

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-runtime/berth/test/census"
)

// TestTell: the service manager hears what it is told, and only from this process.
func TestTell(t *testing.T) {
	census.Check(t)
	socket := filepath.Join(census.Dir(t), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = manager.Close() })
	t.Setenv(variable, socket)
	m, err := Find()
	if err != nil || m == nil {
		t.Fatalf("found %v, %v, want a manager", m, err)
	}
	if got := os.Getenv(variable); got != "" {
		t.Errorf("%s is still %q", variable, got)
	}
	for _, c := range []struct {
		want string
		tell error
	}{{"READY=1", m.Ready(t.Context())}, {"STOPPING=1", m.Stopping(t.Context())}} {
		if c.tell != nil {
			t.Fatal(c.tell)
		}
		buf := make([]byte, 100)
		if err := manager.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := manager.Read(buf)
		if err != nil || string(buf[:n]) != c.want {
			t.Errorf("the manager hears %q, %v, want %q", buf[:n], err, c.want)
		}
	}
}

// TestNobody: without a service manager nobody is told.
func TestNobody(t *testing.T) {
	t.Setenv(variable, "")
	m, err := Find()
	if err != nil || m != nil {
		t.Fatalf("found %v, %v, want none", m, err)
	}
	if err := m.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}
