package hostcheck

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-runtime/berth/internal/config"
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
		f.plugins(t.Context(), c)
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
	if got := check(nothing, "plugin_dir"); got.Level != Warn || !strings.Contains(got.Found, "limits is no name") {
		t.Errorf("a program without a number: got %+v", got)
	}
}
