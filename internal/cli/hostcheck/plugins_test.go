package hostcheck

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// TestPlugins: the check says where plugins connect and which are started, and finds a name that keeps all of them out.
func TestPlugins(t *testing.T) {
	dir := t.TempDir()
	add := func(name string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	check := func(change func(*config.Config), name string) Fact {
		t.Helper()
		c := host(t)
		c.NRI.PluginDir = dir
		change(c)
		var f facts
		f.plugins(c)
		return find(t, f, areaPlugins, name)
	}
	add("10-limits", 0o755)
	add("README", 0o644)
	nothing := func(*config.Config) {}
	for _, test := range []struct {
		what, name, found string
		change            func(*config.Config)
	}{
		{"default", "NRI", "nri.sock", nothing},
		{"plugins of the directory", "plugin_dir", "starts 10-limits", nothing},
		{"no connections", "NRI", "only", func(c *config.Config) { c.NRI.DisableConnections = true }},
		{"switched off", "NRI", "off", func(c *config.Config) { c.NRI.Enabled = false }},
	} {
		if got := check(test.change, test.name); got.Level == Warn || !strings.Contains(got.Found, test.found) {
			t.Errorf("%s: got %+v, want %q", test.what, got, test.found)
		}
	}
	add("limits", 0o755)
	if got := check(nothing, "plugin_dir"); got.Level != Warn || !strings.Contains(got.Found, "limits is not a plugin name") {
		t.Errorf("a program without a number: got %+v", got)
	}
}

// TestListens: a listener is found without a connection to it.
func TestListens(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	socket := filepath.Join(leakcheck.Dir(t), "nri socket")
	if listens(socket) {
		t.Error("found a listener without a socket")
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if !listens(socket) || listens(filepath.Dir(socket)+"/nri") {
		t.Error("the listener is not found, or by another name")
	}
	if err := l.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("there was a connection: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if listens(socket) {
		t.Error("found a listener that is gone")
	}
}
