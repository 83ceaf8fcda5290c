package leakcheck

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/privilege"
)

// recorder is a test that collects its failures and runs its clean-ups on finish.
type recorder struct {
	testing.TB
	name     string
	errors   []string
	cleanups []func()
}

func (r *recorder) Name() string              { return r.name }
func (r *recorder) Helper()                   {}
func (r *recorder) Cleanup(f func())          { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Failed() bool              { return len(r.errors) > 0 || strings.HasSuffix(r.name, "Leak") }
func (r *recorder) Errorf(f string, a ...any) { r.errors = append(r.errors, fmt.Sprintf(f, a...)) }
func (r *recorder) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

func (r *recorder) finish() string {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
	return strings.Join(r.errors, "\n")
}

// TestLeaksAreFound leaks one thing of each kind and looks for it in the report.
func TestLeaksAreFound(t *testing.T) {
	privilege.Root(t)
	unique := fmt.Sprintf("bc%d", os.Getpid())
	for _, c := range []struct {
		name, want string
		leak       func(t *testing.T, dir string) (undo func())
	}{
		{"process", "new in processes: pid", leakProcess},
		{"mount", "new in mounts: tmpfs on", leakMount},
		{"namespace", "new in mounts: pin of namespace net:[", leakNamespace},
		{"link", "new in links: " + unique + " (bridge)", leakLink(unique)},
		{"nftables", "new in nftables: table inet " + unique, leakTable(unique)},
		{"cgroup", "new in cgroups: /sys/fs/cgroup", leakCgroup(unique)},
		{"descriptor", "new in descriptors: ", leakDescriptor},
		{"goroutine", "leakcheck.leakGoroutine", leakGoroutine},
		{"file", "new in files: ", leakFile},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			inner := &recorder{TB: t, name: t.Name() + "/Leak"}
			Check(inner, dir, unique)
			undo := c.leak(t, dir)
			report := inner.finish()
			undo()
			if !strings.Contains(report, c.want) {
				t.Errorf("leak check reports %q, want it to contain %q", report, c.want)
			}
		})
	}
}

func leakProcess(t *testing.T, _ string) func() {
	// The shell ends at once, its child in a session of its own does not: only a subreaper still knows it.
	if err := exec.Command("setsid", "sh", "-c", "sleep 600 </dev/null >/dev/null 2>&1 &").Run(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if left, err := descendants(); err != nil || len(left) > 0 {
			t.Errorf("descendants after the leak check ended the leaked ones: %v (%v), want none", left, err)
		}
	}
}

func leakMount(t *testing.T, dir string) func() {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	return func() { unmount(t, dir) }
}

func leakNamespace(t *testing.T, dir string) func() {
	pin := filepath.Join(dir, "net")
	if err := os.WriteFile(pin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/self/ns/net", pin, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	return func() { unmount(t, pin) }
}

func unmount(t *testing.T, path string) {
	t.Helper()
	if err := unix.Unmount(path, 0); err != nil {
		t.Error(err)
	}
}

func leakLink(name string) func(*testing.T, string) func() {
	return func(t *testing.T, _ string) func() {
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := netlink.LinkDel(link); err != nil {
				t.Error(err)
			}
		}
	}
}

func leakTable(name string) func(*testing.T, string) func() {
	nft := func(t *testing.T, args ...string) {
		if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
			t.Fatalf("nft %v: %v: %s", args, err, out)
		}
	}
	return func(t *testing.T, _ string) func() {
		nft(t, "add", "table", "inet", name)
		return func() { nft(t, "delete", "table", "inet", name) }
	}
}

func leakCgroup(name string) func(*testing.T, string) func() {
	return func(t *testing.T, _ string) func() {
		root := "/sys/fs/cgroup"
		if _, err := os.Stat(root + "/pids"); err == nil {
			root += "/pids"
		}
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	}
}

func leakDescriptor(t *testing.T, _ string) func() {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func leakGoroutine(*testing.T, string) func() {
	end := make(chan struct{})
	go func() { <-end }()
	return func() { close(end) }
}

func leakFile(t *testing.T, dir string) func() {
	if err := os.WriteFile(filepath.Join(dir, "left"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {}
}

// TestNothingLeaks: a test which cleans up, or whose things need a moment to go away, passes.
func TestNothingLeaks(t *testing.T) {
	inner := &recorder{TB: t, name: t.Name() + "/Clean"}
	Check(inner)
	if err := exec.Command("setsid", "sh", "-c", "sleep 1 </dev/null >/dev/null 2>&1 &").Run(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	inner.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if report := inner.finish(); report != "" {
		t.Errorf("leak check reports %q, want nothing", report)
	}
}

// TestDirRefusesMounts: what is mounted beneath a test directory is reported and detached, never deleted through.
func TestDirRefusesMounts(t *testing.T) {
	precious := t.TempDir()
	if err := os.WriteFile(filepath.Join(precious, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inner := &recorder{TB: t, name: t.Name() + "/Leak"}
	dir := Dir(inner)
	target := filepath.Join(dir, "m")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(precious, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if report := inner.finish(); !strings.Contains(report, "leaves a mount behind") {
		t.Errorf("Dir reports %q, want the mount", report)
	}
	if _, err := os.Stat(filepath.Join(precious, "file")); err != nil {
		t.Errorf("what was mounted was deleted too: %v", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("stat %s = %v, want it removed", dir, err)
	}
}

// TestParseNft: rules are identified by their place; permanent state of iptables and of the CNI plugins is left out.
func TestParseNft(t *testing.T) {
	got := parseNft([]byte(`table ip nat {
	chain PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local counter jump CNI-HOSTPORT-DNAT
	}
	chain CNI-HOSTPORT-DNAT {
		tcp dport 80 jump CNI-DN-1234
	}
	chain CNI-DN-1234 {
		tcp dport 80 dnat to 10.0.0.2:80
	}
}
table inet berth {
	chain forward {
		iifname "berth0" accept
	}
}
`))
	want := []string{
		"table inet berth",
		"table inet berth: chain forward",
		`table inet berth: chain forward: iifname "berth0" accept`,
		"table ip nat: chain CNI-DN-1234",
		"table ip nat: chain CNI-DN-1234: tcp dport 80 dnat to 10.0.0.2:80",
	}
	if g, w := strings.Join(sortedKeys(got), "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("parseNft finds\n%s\nwant\n%s", g, w)
	}
}
