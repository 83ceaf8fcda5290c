package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/usermap"
)

// root is what the root of the tests' user namespace is on the host.
const root = 7 << 16

// dirs makes directories beneath dir.
func dirs(t *testing.T, dir string, names ...string) (paths []string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

// Layers whose names are longer than a page together are mounted, and no thread of the process stays in their directory:
// not even the main thread, which does not end with its goroutine.
func TestManyLayers(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	dir := leakcheck.Dir(t)
	var names []string
	for i := range 400 {
		names = append(names, fmt.Sprintf("layers/%03d/fs/file-%03d", i, i))
	}
	layers := dirs(t, dir, names...)
	for i, layer := range layers {
		layers[i] = filepath.Dir(layer)
	}
	target := dirs(t, dir, "target")[0]
	for range 50 {
		if err := Mount(target, layers, unix.MS_RDONLY, nil, nil); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(target)
		if err != nil || len(entries) != len(layers) {
			t.Errorf("got %d files and %v, want %d", len(entries), err, len(layers))
		}
		if err := unix.Unmount(target, 0); err != nil {
			t.Fatal(err)
		}
	}
	for inside(t, dir) != "" { // the test's deadline ends this
		runtime.Gosched()
	}
}

// inside names a thread of this process that is in dir; empty for none.
func inside(t *testing.T, dir string) string {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		if cwd, err := os.Readlink(thread); err == nil && strings.HasPrefix(cwd, dir) {
			return thread
		}
	}
	return ""
}

// More layers than a page has room for are refused.
func TestTooManyLayers(t *testing.T) {
	layers := make([]string, 2048)
	for i := range layers {
		layers[i] = fmt.Sprintf("/nowhere/%d", i)
	}
	if err := Mount("/nowhere", layers, 0, nil, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want a failed precondition", err)
	}
}

// A directory that is not there is named.
func TestNoDirectory(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	layers := make([]string, 200)
	for i := range layers {
		layers[i] = fmt.Sprintf("/nowhere/at-all/%010d", i)
	}
	if err := Mount("/nowhere", layers, 0, nil, nil); err == nil || !strings.Contains(err.Error(), "/nowhere/at-all") {
		t.Errorf("got %v", err)
	}
}

func TestCommonDir(t *testing.T) {
	for _, c := range []struct {
		dirs  []string
		base  string
		names string
	}{
		{[]string{"/a/b/1/fs"}, "/a/b/1", "fs"},
		{[]string{"/a/b/1/fs", "/a/b/2/fs"}, "/a/b", "1/fs 2/fs"},
		{[]string{"/a/b/1/fs", "/a/bc/2/fs"}, "/a", "b/1/fs bc/2/fs"},
		{[]string{"/a/1", "/b/2"}, "/", "a/1 b/2"},
	} {
		base, names, err := commonDir(c.dirs)
		if err != nil || base != c.base || strings.Join(names, " ") != c.names {
			t.Errorf("commonDir(%v) = %s %v %v", c.dirs, base, names, err)
		}
	}
	if _, _, err := commonDir([]string{"/a/1:2", "/a/3"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}

// Layers in a file system that knows no mapping are refused with its name; nothing is mounted, and nothing stays open.
func TestMappedRefused(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	dir := leakcheck.Dir(t)
	made := dirs(t, dir, "source", "target")
	source, target := made[0], made[1]
	if err := unix.Mount("ramfs", source, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(source, 0); err != nil {
			t.Error(err)
		}
	})
	layers := dirs(t, source, "a", "b")
	if err := Mount(target, layers, unix.MS_RDONLY, nil, usermap.User(t, root)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want a failed precondition", err)
	}
	if entries, err := os.ReadDir(target); err != nil || len(entries) != 0 {
		t.Errorf("the target has %v, %v", entries, err)
	}
}

// The host that runs the tests can map, and the probe leaves nothing, neither its own files nor those of a killed one.
func TestTryMapped(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	dir := filepath.Join(leakcheck.Dir(t), "try")
	if err := os.MkdirAll(filepath.Join(dir, "target", "left"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := TryMapped(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("what is left of the probe: %v", err)
	}
}
