package directory

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestBeneathStaysBelow plants links, FIFOs and devices where a log is expected.
func TestBeneathStaysBelow(t *testing.T) {
	privilege.Root(t)
	dir, outside := t.TempDir(), t.TempDir()
	secret := filepath.Join(outside, "secret")
	for _, err := range []error{
		os.WriteFile(secret, []byte("host"), 0o600),
		os.Symlink(outside, filepath.Join(dir, "linked")),
		os.Symlink(secret, filepath.Join(dir, "link.log")),
		os.Symlink(filepath.Join(outside, "new"), filepath.Join(dir, "dangling.log")),
		unix.Mkfifo(filepath.Join(dir, "fifo.log"), 0o600),
		unix.Mknod(filepath.Join(dir, "device.log"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
		os.Mkdir(filepath.Join(dir, "directory.log"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]error{
		"linked/0.log": unix.ELOOP, "linked/secret": unix.ELOOP, "link.log": unix.ELOOP, "dangling.log": unix.ELOOP,
		"fifo.log": unix.ENXIO, "device.log": unix.ENXIO, "directory.log": unix.EISDIR, "../secret": unix.EXDEV,
	} {
		for _, flags := range []int{os.O_WRONLY, os.O_WRONLY | os.O_CREATE} {
			f, err := OpenBeneath(dir, name, flags, 0o600)
			if !errors.Is(err, want) {
				t.Errorf("open %s with flags %#x: %v, %v, want %v", name, flags, f, err, want)
			}
		}
	}
	if err := MakeBeneath(dir, "linked/sub", 0o755); !errors.Is(err, unix.ELOOP) {
		t.Errorf("make a directory behind a link: %v", err)
	}
	if err := RemoveBeneath(dir, "linked/secret"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("remove a file behind a link: %v", err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside are %v, %v", entries, err)
	}
	if err := MakeBeneath(dir, "a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // made, then found
		f, err := OpenBeneath(dir, "a/b/0.log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(writeText(f), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "a/b/0.log")); err != nil || string(text) != "xx" {
		t.Errorf("log is %q, %v", text, err)
	}
}

func writeText(f *os.File) error {
	_, err := f.WriteString("x")
	return err
}

// TestReadInRoot follows links inside the root directory only, and opens nothing but regular files.
func TestReadInRoot(t *testing.T) {
	privilege.Root(t)
	root := t.TempDir()
	for _, err := range []error{
		os.Mkdir(filepath.Join(root, "etc"), 0o755),
		os.WriteFile(filepath.Join(root, "etc/real"), []byte("inside"), 0o600),
		os.Symlink("/etc/real", filepath.Join(root, "etc/passwd")),
		os.Symlink("../../../../../etc/real", filepath.Join(root, "etc/up")),
		unix.Mkfifo(filepath.Join(root, "etc/fifo"), 0o600),
		unix.Mknod(filepath.Join(root, "etc/tape"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 1))),
		os.WriteFile(filepath.Join(root, "etc/large"), make([]byte, 101), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"etc/passwd", "etc/up"} {
		if text, err := ReadInRoot(root, name, 100); err != nil || string(text) != "inside" {
			t.Errorf("%s is %q, %v", name, text, err)
		}
	}
	for name, want := range map[string]error{
		"etc/fifo": unix.ENXIO, "etc/tape": unix.ENXIO, "etc": unix.EISDIR, "etc/none": fs.ErrNotExist, "etc/large": unix.EFBIG,
	} {
		if text, err := ReadInRoot(root, name, 100); !errors.Is(err, want) {
			t.Errorf("%s: %q, %v, want %v", name, text, err, want)
		}
	}
}

// TestModes closes and opens directories, whatever the umask is.
func TestModes(t *testing.T) {
	privilege.Root(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir := t.TempDir()
	const gid = 70000
	mode := func(path string) (fs.FileMode, uint32) {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return fs.FileMode(st.Mode & 0o777), st.Gid
	}
	passage, own := filepath.Join(dir, "passage"), filepath.Join(dir, "passage/own")
	if err := errors.Join(Make(passage, Passage), Admit(own, gid)); err != nil {
		t.Fatal(err)
	}
	if m, _ := mode(passage); m != Passage {
		t.Errorf("mode of a passage is %#o", m)
	}
	if m, g := mode(own); m != Group || g != gid {
		t.Errorf("mode of an admitting directory is %#o, its group %d", m, g)
	}
	if err := Admit(own, 0); err != nil {
		t.Fatal(err)
	}
	if m, _ := mode(own); m != Private {
		t.Errorf("mode of a directory for root is %#o", m)
	}
	for _, c := range []struct {
		now, limit, want fs.FileMode
		closed           bool
	}{{0o755, Passage, 0o711, true}, {0o700, Passage, 0o700, false}, {0o711, Private, 0o700, true}} {
		if err := errors.Join(os.Chmod(passage, c.now), os.Chown(passage, 1000, -1)); err != nil {
			t.Fatal(err)
		}
		closed, err := Close(passage, c.limit)
		var st unix.Stat_t
		if err := errors.Join(err, unix.Stat(passage, &st)); err != nil {
			t.Fatal(err)
		}
		if m := fs.FileMode(st.Mode & 0o777); m != c.want || closed != c.closed || st.Uid != 0 {
			t.Errorf("mode %#o within %#o is %#o, closed %v, of user %d", c.now, c.limit, m, closed, st.Uid)
		}
	}
}
