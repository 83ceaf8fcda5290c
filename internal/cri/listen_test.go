package cri

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/test/leakcheck"
)

func TestListenReplacesAStaleSocketAndRefusesALiveOne(t *testing.T) {
	leakcheck.Check(t)
	path := filepath.Join(socketDir(t), "d", "berth.sock")
	first, err := Listen(t.Context(), "unix://"+path, -1)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("socket = %v, %v, want mode %o", info, err, socketMode)
	}
	if l, err := Listen(t.Context(), "unix://"+path, -1); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a second daemon: %v, %v; want it refused", l, err)
	}
	// A daemon that was killed leaves its file.
	if err := first.(*socket).Listener.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(t.Context(), "unix://"+path, -1)
	if err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	// A late end of the first does not take the successor's socket away.
	if err := first.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Errorf("the successor's socket: %v", err)
	} else {
		_ = conn.Close()
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestListenRefusesWhatIsNoSocket(t *testing.T) {
	path := filepath.Join(socketDir(t), "precious")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(t.Context(), "unix://"+path, -1); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%v, %v; want a failed precondition", l, err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "data" {
		t.Errorf("the file is %q, %v", data, err)
	}
}

func TestListenRefusesOtherEndpoints(t *testing.T) {
	for _, endpoint := range []string{"", "/run/berth.sock", "tcp://127.0.0.1:1", "unix://run/berth.sock", "unix:relative", "unix://"} {
		l, err := Listen(t.Context(), endpoint, -1)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "unix:///") {
			t.Errorf("%q: %v, %v; want an invalid argument that shows the form", endpoint, l, err)
		}
	}
}

// TestListenGroup: a group may connect if one is named, else root alone.
func TestListenGroup(t *testing.T) {
	leakcheck.Check(t)
	for _, test := range []struct {
		group int
		gid   uint32
		mode  os.FileMode
	}{{-1, 0, 0o600}, {4242, 4242, 0o660}} {
		path := filepath.Join(socketDir(t), "berth.sock")
		l, err := Listen(t.Context(), "unix://"+path, test.group)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if gid := info.Sys().(*syscall.Stat_t).Gid; gid != test.gid || info.Mode().Perm() != test.mode {
			t.Errorf("group %d: the socket belongs to group %d with mode %o, want %d and %o", test.group, gid, info.Mode().Perm(), test.gid, test.mode)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
