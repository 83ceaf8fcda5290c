package notify

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/servicemanager"
)

// TestNotify: the service manager receives the messages, and only those of this process.
func TestNotify(t *testing.T) {
	leakcheck.Check(t)
	manager := servicemanager.Listen(t, filepath.Join(leakcheck.Dir(t), "notify"))
	t.Setenv(variable, manager.Path)
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
		if text, with := manager.Hear(t); text != c.want || with != nil {
			t.Errorf("the manager hears %q with %v, want %q", text, with, c.want)
		}
	}
}

// TestNotifyWithoutManager: without a service manager no message is sent.
func TestNotifyWithoutManager(t *testing.T) {
	t.Setenv(variable, "")
	m, err := Find()
	if err != nil || m != nil {
		t.Fatalf("found %v, %v, want none", m, err)
	}
	if err := m.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}
