package image_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
)

// rootfsOf mounts a new root file system of an image and returns where.
func (f *fixture) rootfsOf(key, id string) string {
	f.t.Helper()
	target := filepath.Join(f.root, "mount-"+key)
	if err := f.PrepareRootfs(f.t.Context(), key, id); err != nil {
		f.t.Fatal(err)
	}
	if err := f.MountRootfs(f.t.Context(), key, target, false, nil); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := f.UnmountRootfs(f.t.Context(), target); err != nil {
			f.t.Error(err)
		}
	})
	return target
}

// What a container changed in its root file system, exported and imported into
// another one of the same image, makes both equal.
func TestChanges(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	spec := hello()
	spec.Layers = append(spec.Layers, imagefactory.Layer{Files: []imagefactory.File{
		imagefactory.Dir("etc"), imagefactory.Regular("etc/a", "a"), imagefactory.Regular("etc/b", "b"),
		imagefactory.Dir("old"), imagefactory.Dir("old/deep"), imagefactory.Regular("old/deep/x", "x"), imagefactory.Regular("old/y", "y"),
		imagefactory.Regular("gone", "gone"),
	}})
	ref, _ := f.push("changes:1", spec)
	id := f.pull(ref)
	from := f.rootfsOf("c1", id)
	at := func(name string) string { return filepath.Join(from, name) }
	for _, err := range []error{
		os.WriteFile(at("etc/a"), []byte("changed"), 0o600),
		os.Mkdir(at("new"), 0o750),
		os.Chown(at("new"), 12, 34),
		os.WriteFile(at("new/first"), []byte("content"), 0o4755),
		os.Link(at("new/first"), at("new/second")),
		os.Symlink("/etc/passwd", at("new/link")),
		os.WriteFile(at(".wh.etc"), []byte("no whiteout"), 0o644),
		unix.Setxattr(at("new/first"), "user.note", []byte("noted"), 0),
		unix.Mkfifo(at("new/fifo"), 0o640),
		unix.Mknod(at("new/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		os.Remove(at("gone")),
		// What comes in the place of a directory hides what that held, at every depth.
		os.RemoveAll(at("old")),
		os.MkdirAll(at("old/deep"), 0o755),
		os.WriteFile(at("old/deep/z"), []byte("z"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var changes bytes.Buffer
	removed, err := f.ExportRootfs(t.Context(), "c1", nil, &changes)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(removed)
	if got := strings.Join(removed, " "); got != "/gone /old/deep/x /old/y" {
		t.Errorf("removed: got %s", got)
	}
	to := f.rootfsOf("c2", id)
	if err := f.ImportRootfs(t.Context(), to, &changes, removed); err != nil {
		t.Fatal(err)
	}
	if got, want := listing(t, to), listing(t, from); got != want {
		t.Errorf("after the import: got\n%s\nwant\n%s", got, want)
	}
	value := make([]byte, 10)
	if n, err := unix.Getxattr(filepath.Join(to, "new/second"), "user.note", value); err != nil || string(value[:n]) != "noted" {
		t.Errorf("attribute: got %q, %v", value[:max(n, 0)], err)
	}
}

// listing is every file with mode, owner, links and what it holds.
func listing(t *testing.T, root string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(file string, _ os.DirEntry, err error) error {
		if err != nil || file == root {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(file, &st); err != nil {
			return err
		}
		line := strings.TrimPrefix(file, root)
		content := ""
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFDIR:
			st.Nlink = 1 // overlayfs counts as it likes
		case syscall.S_IFREG:
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			content = string(data)
		case syscall.S_IFLNK:
			if content, err = os.Readlink(file); err != nil {
				return err
			}
		}
		lines = append(lines, strings.Join([]string{line, octal(st.Mode), octal(st.Uid), octal(st.Gid), octal(st.Nlink), octal(st.Rdev), content}, " "))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// A hostile import does not lead out of the root file system.
func TestImportStaysInside(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hello:1", hello())
	to := f.rootfsOf("c1", f.pull(ref))
	outside := filepath.Join(f.root, "outside")
	if err := os.WriteFile(outside, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../..", filepath.Join(to, "up")); err != nil {
		t.Fatal(err)
	}
	empty := strings.NewReader(strings.Repeat("\x00", 1024))
	for _, name := range []string{"../outside", "/../../outside", "up/outside"} {
		if err := f.ImportRootfs(t.Context(), to, empty, []string{name}); err != nil {
			t.Logf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "/", ".."} {
		if err := f.ImportRootfs(t.Context(), to, empty, []string{name}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("removal of %q: got %v, want an invalid argument", name, err)
		}
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != "mine" {
		t.Errorf("the file outside: got %q, %v", text, err)
	}
	if err := f.ImportRootfs(t.Context(), to, strings.NewReader("no archive at all, but long enough for one"), nil); err == nil {
		t.Error("what is no archive was imported")
	}
	if _, err := f.ExportRootfs(t.Context(), "missing", nil, &bytes.Buffer{}); !errdefs.IsNotFound(err) {
		t.Errorf("export of what is not there: got %v, want not found", err)
	}
	if _, err := f.ExportRootfs(t.Context(), "c1", nil, brokenWriter{}); !errors.Is(err, errBroken) {
		t.Errorf("export to where nothing can be written: got %v", err)
	}
}

var errBroken = errors.New("broken")

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func octal[N uint32 | uint64](n N) string { return strconv.FormatUint(uint64(n), 8) }
