package hostcheck

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/criu"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// host returns a configuration of directories of its own.
func host(t *testing.T) *config.Config {
	t.Helper()
	c := config.Default()
	dir := t.TempDir()
	c.Root, c.State = filepath.Join(dir, "root"), filepath.Join(dir, "state")
	c.Network.CNIConfDir = filepath.Join(dir, "cni")
	return c
}

func find(t *testing.T, facts []Fact, area, name string) Fact {
	t.Helper()
	i := slices.IndexFunc(facts, func(f Fact) bool { return f.Area == area && f.Name == name })
	if i < 0 {
		t.Fatalf("nothing is said about %s %s", area, name)
	}
	return facts[i]
}

// The whole check runs on this host, finds what the other tests need, and
// leaves nothing behind.
func TestRun(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	c := host(t)
	facts := Run(t.Context(), c)
	for _, want := range []struct{ area, name string }{
		{"kernel", "overlay"}, {"kernel", "user namespaces"}, {"kernel", "pidfd"}, {"kernel", "namespaces"}, {"kernel", "seccomp"},
		{"rights", "CAP_SYS_ADMIN"}, {"network", "links"}, {"network", "nftables"}, {"network", "pod network"}, {"runtime", "default"},
	} {
		if f := find(t, facts, want.area, want.name); f.Level == Fail {
			t.Errorf("%s %s: %s (%s)", f.Area, f.Name, f.Found, f.Remedy)
		}
	}
	if f := find(t, facts, "runtime", "checkpoints"); (f.Level == OK) != criu.Works(t) || !strings.Contains(f.Found+f.Remedy, "CRIU") {
		t.Errorf("checkpoints: %+v", f)
	}
	for _, f := range facts {
		if bad := f.Level == Warn || f.Level == Fail; bad != (f.Remedy != "") {
			t.Errorf("%s %s is %s with the remedy %q", f.Area, f.Name, f.Level, f.Remedy)
		}
		if f.Found == "" {
			t.Errorf("%s %s says nothing", f.Area, f.Name)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(c.Root)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
	text, err := json.Marshal(facts[0])
	if want := `{"area":"kernel","name":"version","level":"info",`; err != nil || !strings.HasPrefix(string(text), want) {
		t.Errorf("as JSON %s (%v), want %s…", text, err, want)
	}
}

func TestHandlers(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	c := host(t)
	c.Runtime.Handlers["gone"] = config.Handler{Type: config.HandlerOCI, Path: "/nowhere/runtime"}
	c.Runtime.Handlers["false"] = config.Handler{Type: config.HandlerOCI, Path: "false"}
	c.Runtime.DefaultHandler = "false"
	var f facts
	f.runtimes(t.Context(), c, true)
	if got := find(t, f, "runtime", "gone"); got.Level != Warn || !strings.Contains(got.Remedy, "runtime.handlers.gone.path") {
		t.Errorf("a handler that is not installed gives %+v", got)
	}
	if got := find(t, f, "runtime", "false"); got.Level != Warn {
		t.Errorf("a handler that does not work gives %+v", got)
	}
	if got := find(t, f, "runtime", "default"); got.Level != Fail || !strings.Contains(got.Found, "does not work") {
		t.Errorf("a default handler that does not work gives %+v", got)
	}
}

// TestCheckpoints: what is missing for checkpoints is said with what to do.
func TestCheckpoints(t *testing.T) {
	for _, tc := range []struct {
		with    []string
		problem error
		level   Level
		words   string
	}{
		{nil, errdefs.ErrNotFound, Info, "no handler"},
		{[]string{"runc"}, errdefs.ErrNotFound, Warn, "install criu"},
		{[]string{"runc"}, errors.New("it is too old"), Warn, "it is too old"},
		{[]string{"crun", "runc"}, nil, OK, "works, with crun, runc"},
	} {
		var f facts
		f.checkpoints(tc.with, tc.problem)
		if got := f[0]; len(f) != 1 || got.Level != tc.level || !strings.Contains(got.Found+got.Remedy, tc.words) {
			t.Errorf("with %v and %v: %+v", tc.with, tc.problem, f)
		}
	}
}

func TestCNI(t *testing.T) {
	c := host(t)
	check := func() Fact {
		var f facts
		f.choice(c)
		return f[0]
	}
	if got := check(); got.Level != OK || !strings.Contains(got.Found, "built-in") {
		t.Errorf("without a configuration: %+v", got)
	}
	c.Network.Builtin = config.BuiltinNever
	if got := check(); got.Level != Fail || !strings.Contains(got.Remedy, "network.builtin") {
		t.Errorf("without a configuration and a built-in network: %+v", got)
	}
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	bin := t.TempDir()
	c.Network.CNIBinDirs = []string{bin}
	file := filepath.Join(c.Network.CNIConfDir, "10-net.conflist")
	write(file, `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap"}]}`, 0o600)
	write(filepath.Join(bin, "bridge"), "", 0o700)
	write(filepath.Join(bin, "portmap"), "", 0o600) // not executable
	if got := check(); got.Level != Fail || !strings.Contains(got.Found, "lacks plugins: host-local, portmap") {
		t.Errorf("with missing plugins: %+v", got)
	}
	write(filepath.Join(bin, "host-local"), "", 0o700)
	if err := os.Chmod(filepath.Join(bin, "portmap"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := check(); got.Level != OK || !strings.Contains(got.Found, `CNI "net"`) {
		t.Errorf("with all plugins: %+v", got)
	}
	write(file, "{", 0o600)
	if got := check(); got.Level != Fail || !strings.Contains(got.Found, file) {
		t.Errorf("with a broken file: %+v", got)
	}
}

func TestSpace(t *testing.T) {
	var f facts
	f.space("root", filepath.Join(t.TempDir(), "not", "there", "yet"))
	if len(f) != 1 || !strings.Contains(f[0].Found, "GB free") {
		t.Errorf("space of a directory that is not there yet: %+v", f)
	}
	if got := share(1, 0); got != 100 {
		t.Errorf("share of nothing is %d", got)
	}
}
