package image_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// Three layers, each packed differently: a later one replaces, removes and
// hides what an earlier one has, and the merged view is what the OCI image
// specification says ("Applying Changesets").
func TestLayersMerge(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	f := newFixtureWith(t, image.Options{Root: leakcheck.Dir(t)}, registry.Options{})
	ref, _ := f.push("merge:1", imagefactory.Spec{Layers: []imagefactory.Layer{
		{Files: []imagefactory.File{
			imagefactory.Dir("etc"), imagefactory.Regular("etc/kept", "one"), imagefactory.Regular("etc/replaced", "one"),
			imagefactory.Regular("etc/removed", "one"), imagefactory.Dir("data"), imagefactory.Regular("data/hidden", "one"),
			imagefactory.Dir("data/sub"), imagefactory.Regular("data/sub/hidden", "one"),
			imagefactory.Dir("gone"), imagefactory.Regular("gone/file", "one"), imagefactory.Symlink("link", "etc/kept"),
		}},
		{Compression: imagefactory.Zstd, Files: []imagefactory.File{
			imagefactory.Dir("etc"), imagefactory.Regular("etc/replaced", "two"), imagefactory.Whiteout("etc/removed"),
			imagefactory.Dir("data"), imagefactory.Opaque("data"), imagefactory.Regular("data/shown", "two"),
			imagefactory.Whiteout("gone"), imagefactory.Regular("link", "no link any more"),
		}},
		{Compression: imagefactory.Uncompressed, Files: []imagefactory.File{
			imagefactory.Dir("etc"), imagefactory.Regular("etc/added", "three"), imagefactory.Dir("gone"),
		}},
	}})
	want := strings.Join([]string{
		"/data drwxr-xr-x", "/data/shown -rw-r--r-- two",
		"/etc drwxr-xr-x", "/etc/added -rw-r--r-- three", "/etc/kept -rw-r--r-- one", "/etc/replaced -rw-r--r-- two",
		"/gone drwxr-xr-x", "/link -rw-r--r-- no link any more",
	}, "\n")
	if got := tree(t, f.mounted(f.pull(ref))); got != want {
		t.Errorf("merged view: got\n%s\nwant\n%s", got, want)
	}
}

// Owners, special modes, extended attributes, hard links, devices and pipes
// arrive as the archive has them. Attributes that would direct the overlay
// file system elsewhere do not arrive at all.
func TestLayerAttributes(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	f := newFixtureWith(t, image.Options{Root: leakcheck.Dir(t)}, registry.Options{})
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	ref, _ := f.push("attributes:1", imagefactory.Spec{Layers: []imagefactory.Layer{{Files: []imagefactory.File{
		{Path: "file", Mode: 0o751 | fs.ModeSetuid, UID: 1000, GID: 2000, Content: []byte("x"),
			Xattrs: map[string]string{
				"user.note": "a value", "security.capability": capability,
				"trusted.overlay.redirect": "/elsewhere", "user.overlay.opaque": "y",
			}},
		imagefactory.Hardlink("second", "file"),
		directory("sticky", 0o777|fs.ModeSticky, 7),
		{Path: "null", Kind: '3', Mode: 0o666, Major: 1, Minor: 3},
		{Path: "pipe", Kind: '6', Mode: 0o600},
	}}}})
	target := f.mounted(f.pull(ref))
	var file, second, null unix.Stat_t
	for path, stat := range map[string]*unix.Stat_t{"file": &file, "second": &second, "null": &null} {
		if err := unix.Lstat(filepath.Join(target, path), stat); err != nil {
			t.Fatal(err)
		}
	}
	if file.Uid != 1000 || file.Gid != 2000 || file.Mode != syscall.S_IFREG|0o4751 {
		t.Errorf("file: got %d:%d mode %o", file.Uid, file.Gid, file.Mode)
	}
	if file.Nlink != 2 || second.Ino != file.Ino {
		t.Errorf("hard link: got %d links, inodes %d and %d", file.Nlink, file.Ino, second.Ino)
	}
	if null.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("device: got %x", null.Rdev)
	}
	for name, want := range map[string]string{
		"user.note": "a value", "security.capability": capability, "user.overlay.opaque": "", "trusted.overlay.redirect": "",
	} {
		value := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(target, "file"), name, value)
		if got := string(value[:max(n, 0)]); got != want || (err != nil) != (want == "") {
			t.Errorf("attribute %s: got %q and %v, want %q", name, got, err, want)
		}
	}
	if info, err := os.Lstat(filepath.Join(target, "sticky")); err != nil || info.Mode() != fs.ModeDir|fs.ModeSticky|0o777 {
		t.Errorf("sticky directory: got %v, %v", info.Mode(), err)
	}
	if info, err := os.Lstat(filepath.Join(target, "pipe")); err != nil || info.Mode() != fs.ModeNamedPipe|0o600 {
		t.Errorf("pipe: got %v, %v", info, err)
	}
}

// A layer may have a file without the directories above it; those keep the
// attributes that they have below, unless the layer makes it opaque.
func TestImpliedDirectories(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("implied:1", imagefactory.Spec{Layers: []imagefactory.Layer{
		{Files: []imagefactory.File{
			directory("tmp", 0o777|fs.ModeSticky, 5), directory("a", 0o700, 1), directory("a/b", 0o711, 2),
			imagefactory.Regular("a/b/old", "1"), directory("new", 0o700, 9), imagefactory.Regular("plain", "1"),
		}},
		{Files: []imagefactory.File{
			imagefactory.Regular("tmp/file", "2"), imagefactory.Regular("a/b/c/file", "2"),
			imagefactory.Whiteout("new"), imagefactory.Whiteout("plain"),
		}},
		{Files: []imagefactory.File{
			imagefactory.Whiteout("a/b/old"), imagefactory.Regular("new/file", "3"), imagefactory.Regular("plain/file", "3"),
		}},
	}})
	target := f.mounted(f.pull(ref))
	for path, want := range map[string]string{
		"tmp": "dtrwxrwxrwx 5", "a": "drwx------ 1", "a/b": "drwx--x--x 2", "a/b/c": "drwxr-xr-x 0",
		"new": "drwxr-xr-x 0", "plain": "drwxr-xr-x 0",
	} {
		info, err := os.Lstat(filepath.Join(target, path))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if got := fmt.Sprint(info.Mode(), " ", info.Sys().(*syscall.Stat_t).Uid); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(target, "a/b/old")); !os.IsNotExist(err) {
		t.Errorf("a/b/old: got %v, want that it is gone", err)
	}
}

// What an archive names can never lie outside of its layer.
func TestHostileArchive(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hostile:1", imagefactory.Spec{Layers: []imagefactory.Layer{{Files: []imagefactory.File{
		imagefactory.Regular("../../../escaped-by-dots", "x"),
		imagefactory.Symlink("out", "/"), imagefactory.Regular("out/escaped-by-link", "x"),
		imagefactory.Symlink("up", "../../../../../../.."), imagefactory.Regular("up/escaped-by-parent", "x"),
	}}}})
	target := f.mounted(f.pull(ref))
	for _, name := range []string{"escaped-by-dots", "escaped-by-link", "escaped-by-parent"} {
		if _, err := os.Lstat(filepath.Join(target, name)); err != nil {
			t.Errorf("%s is not in the image's root: %v", name, err)
		}
		if _, err := os.Lstat("/" + name); err == nil {
			t.Errorf("%s is in the node's root", name)
		}
	}
}

// Archives that make no sense are refused, and nothing of them stays.
func TestBrokenLayers(t *testing.T) {
	privilege.Root(t)
	for name, layer := range map[string]imagefactory.Layer{
		"no-archive":     {Tar: []byte(strings.Repeat("this is no archive ", 100))},
		"cut-archive":    {Tar: cutArchive(t)},
		"dangling-link":  {Files: []imagefactory.File{imagefactory.Hardlink("a", "nowhere")}},
		"whiteout-of-up": {Files: []imagefactory.File{imagefactory.Dir("a"), imagefactory.Regular("a/.wh...", "")}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			ref, _ := f.push("broken:1", imagefactory.Spec{Layers: []imagefactory.Layer{hello().Layers[0], layer}})
			_, err := f.Pull(t.Context(), ref, image.Auth{})
			if err == nil || !strings.Contains(err.Error(), "unpack layer") {
				t.Fatalf("got %v, want an error that names the layer", err)
			}
			if _, again := f.Pull(t.Context(), ref, image.Auth{}); again == nil || again.Error() != err.Error() {
				t.Errorf("the second attempt says %v, the first said %v: kubelet cannot count them", again, err)
			}
			f.nothingLeft()
		})
	}
}

func cutArchive(t *testing.T) []byte {
	t.Helper()
	// A header that promises more than there is.
	archive := make([]byte, 512)
	copy(archive, "name")
	copy(archive[100:], "0000644\x000000000\x000000000\x0000000100000\x00")
	copy(archive[257:], "ustar\x0000")
	archive[156] = '0'
	sum := 8 * int(' ')
	for _, b := range archive {
		sum += int(b)
	}
	copy(archive[148:], fmt.Sprintf("%06o\x00 ", sum))
	return archive
}

// An image without layers can be used too: its root is empty and writable.
func TestNoLayers(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("empty:1", imagefactory.Spec{Config: imagefactory.MinimalConfig("x")})
	target := f.mounted(f.pull(ref))
	if err := os.WriteFile(filepath.Join(target, "file"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if err := f.Remove(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

// One blob that is several layers of an image is fetched once.
func TestRepeatedLayer(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	same := hello().Layers[0]
	ref, a := f.push("repeated:1", imagefactory.Spec{Layers: []imagefactory.Layer{same, same, same}})
	target := f.mounted(f.pull(ref))
	if got := tree(t, target); got != "/hello -rw-r--r-- world" {
		t.Errorf("content: got %s", got)
	}
	if n := f.proxy.Count("GET", a.Layers[0].Digest.String()); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
}

// An image with more layers than a node wants to stack is refused.
func TestTooManyLayers(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	spec := imagefactory.Spec{Layers: make([]imagefactory.Layer, 257)}
	for i := range spec.Layers {
		spec.Layers[i] = hello().Layers[0]
	}
	ref, _ := f.push("many:1", spec)
	if _, err := f.Pull(t.Context(), ref, image.Auth{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v, want invalid argument", err)
	}
	f.nothingLeft()
}

// As many layers as are allowed can be mounted, though their names are longer
// than one page together.
func TestManyLayers(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	spec := imagefactory.Spec{}
	for i := range 200 {
		spec.Layers = append(spec.Layers, imagefactory.Layer{Files: []imagefactory.File{
			imagefactory.Regular(fmt.Sprintf("file-%d", i), ""),
		}})
	}
	ref, _ := f.push("many:1", spec)
	entries, err := os.ReadDir(f.mounted(f.pull(ref)))
	if err != nil || len(entries) != 200 {
		t.Errorf("got %d files and %v, want 200", len(entries), err)
	}
}

// A layer whose blob has no bytes at all changes nothing.
func TestEmptyBlob(t *testing.T) {
	f := newFixture(t)
	spec := hello()
	spec.Layers = append(spec.Layers, imagefactory.Layer{Tar: []byte{}, Compression: imagefactory.Uncompressed})
	ref, _ := f.push("empty-blob:1", spec)
	if got := tree(t, f.mounted(f.pull(ref))); got != "/hello -rw-r--r-- world" {
		t.Errorf("got %s", got)
	}
}
