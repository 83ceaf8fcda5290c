package idmap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/usermap"
)

const root = 7 << 16

// place is where mounts of a test go, which are taken off when it ends.
func place(t testing.TB, dir, name string) string {
	t.Helper()
	target := filepath.Join(dir, name)
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(target, unix.MNT_DETACH) == nil {
		}
	})
	return target
}

func write(t testing.TB, path string, uid int) {
	t.Helper()
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}

// A bound directory shows its files with the owners of the user namespace, and what is made in there is on disk with
// those that it came from. What is mounted below is mapped as well.
func TestBind(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	dir := leakcheck.Dir(t)
	source := place(t, dir, "source")
	write(t, filepath.Join(source, "file"), 33)
	below := place(t, source, "below")
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(below, "file"), 34)
	target := place(t, dir, "target")
	whole, err := Bind(source, target, usermap.User(t, root), Options{})
	if err != nil || !whole {
		t.Fatalf("Bind = %t, %v", whole, err)
	}
	for path, want := range map[string]uint32{"file": root + 33, "below/file": root + 34} {
		if got := usermap.Owner(t, filepath.Join(target, path)); got != want {
			t.Errorf("%s belongs to %d, want %d", path, got, want)
		}
	}
	made := filepath.Join(target, "made")
	if err := os.WriteFile(made, nil, 0o644); err == nil {
		t.Error("a user that is not mapped made a file")
	}
	if err := os.Chown(filepath.Join(target, "file"), root+5, root+5); err != nil {
		t.Fatal(err)
	}
	if got := usermap.Owner(t, filepath.Join(source, "file")); got != 5 {
		t.Errorf("on disk the file belongs to %d, want 5", got)
	}
}

// A file is bound as a directory is, and read-only if that is asked for.
func TestBindFile(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	dir := leakcheck.Dir(t)
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	write(t, source, 0)
	write(t, target, 0)
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	if _, err := Bind(source, target, usermap.User(t, root), Options{Readonly: true}); err != nil {
		t.Fatal(err)
	}
	if got := usermap.Owner(t, target); got != root {
		t.Errorf("it belongs to %d, want %d", got, root)
	}
	if err := os.WriteFile(target, nil, 0o644); err == nil {
		t.Error("it was written to")
	}
}

// What is mounted below a slave copy later comes from the original; nothing goes the other way, nor does the unmounting
// of a copy take anything off the original.
func TestBindPropagation(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	dir := leakcheck.Dir(t)
	source := place(t, dir, "source")
	if err := unix.Mount(source, source, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", source, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	private, slave := place(t, dir, "private"), place(t, dir, "slave")
	for target, opts := range map[string]Options{private: {}, slave: {Slave: true}} {
		if _, err := Bind(source, target, usermap.User(t, root), opts); err != nil {
			t.Fatal(err)
		}
	}
	later := place(t, source, "later")
	if err := unix.Mount("tmpfs", later, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(later, "file"), 0)
	for target, want := range map[string]bool{private: false, slave: true} {
		if _, err := os.Lstat(filepath.Join(target, "later", "file")); (err == nil) != want {
			t.Errorf("a later mount in %s: %v, want it there: %t", target, err, want)
		}
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(later, "file")); err != nil {
		t.Errorf("the mount of the original is gone with the copy: %v", err)
	}
}

// A file system that knows no mapping is named, and nothing is mounted. Below another it stays as it is.
func TestBindRefused(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	dir := leakcheck.Dir(t)
	target := place(t, dir, "target")
	if _, err := Bind("/proc", target, usermap.User(t, root), Options{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "proc") {
		t.Errorf("got %v, want a failed precondition that names proc", err)
	}
	if entries, err := os.ReadDir(target); err != nil || len(entries) != 0 {
		t.Errorf("the target has %v, %v", entries, err)
	}
	source := place(t, dir, "source")
	below := place(t, source, "below")
	if err := unix.Mount("proc", below, "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	whole, err := Bind(source, target, usermap.User(t, root), Options{})
	if err != nil || whole {
		t.Errorf("Bind = %t, %v, want false and no error", whole, err)
	}
	if got := usermap.Owner(t, target); got != root {
		t.Errorf("it belongs to %d, want %d", got, root)
	}
}
