package image_test

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// declaring is an image with directories for volumes, and with links that would like to lead out of it.
func declaring() imagefactory.Spec {
	return imagefactory.Spec{Layers: []imagefactory.Layer{
		{Files: []imagefactory.File{
			{Path: "data", Kind: tar.TypeDir, Mode: 0o770 | fs.ModeSetgid, UID: 12, GID: 34, Xattrs: map[string]string{"user.note": "noted"}},
			{Path: "data/file", Content: []byte("content"), Mode: 0o4751, UID: 5, GID: 6, Xattrs: map[string]string{"user.of": "file"}},
			imagefactory.Hardlink("data/hard", "data/file"), imagefactory.Symlink("data/link", "/etc/passwd"),
			imagefactory.Dir("data/sub"), imagefactory.Regular("data/sub/deep", "deep"), imagefactory.Regular("data/gone", "x"),
			{Path: "data/fifo", Kind: tar.TypeFifo}, imagefactory.Regular("file", "no directory"),
			imagefactory.Symlink("up", "../../../../../../data"), imagefactory.Symlink("abs", "/data"), imagefactory.Symlink("loop", "loop"),
			imagefactory.Symlink("dangling", "/nowhere/at/all"),
		}},
		{Files: []imagefactory.File{imagefactory.Whiteout("data/gone"), imagefactory.Regular("data/upper", "from the second layer")}},
	}}
}

// TestVolumeDirs makes the directories of volumes: each is a copy of what the image has there, in all its layers, however
// its links and dots point out of it; or an empty one. They stay when they are made again, and go with the container.
func TestVolumeDirs(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("volumes:1", declaring())
	id := f.pull(ref)
	root := f.rootfsOf("c", id)
	var first, second []string
	paths := []string{"/data", "/../../data", "/up", "/abs", "/missing/deep", "/dangling"}
	for _, dirs := range []*[]string{&first, &second} {
		var err error
		if *dirs, err = f.PrepareVolumeDirs(t.Context(), "c", root, paths, nil); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join((*dirs)[4], "written"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := listing(t, filepath.Join(root, "data"))
	if !strings.Contains(want, "/upper") || strings.Contains(want, "/gone") {
		t.Fatalf("the image has\n%s", want)
	}
	for i := range 4 {
		if got := listing(t, first[i]); got != want {
			t.Errorf("volume %s: got\n%s\nwant\n%s", paths[i], got, want)
		}
		var st unix.Stat_t
		value := make([]byte, 10)
		if err := unix.Stat(first[i], &st); err != nil || st.Mode&0o7777 != 0o2770 || st.Uid != 12 || st.Gid != 34 {
			t.Errorf("volume %s: mode %o, owner %d:%d, %v; want those of the image", paths[i], st.Mode, st.Uid, st.Gid, err)
		}
		if n, err := unix.Getxattr(first[i], "user.note", value); err != nil || string(value[:n]) != "noted" {
			t.Errorf("volume %s: attribute %q, %v", paths[i], value[:max(n, 0)], err)
		}
		if n, err := unix.Getxattr(filepath.Join(first[i], "hard"), "user.of", value); err != nil || string(value[:n]) != "file" {
			t.Errorf("volume %s: attribute of a file %q, %v", paths[i], value[:max(n, 0)], err)
		}
	}
	for i := 4; i < 6; i++ {
		if info, err := os.Stat(first[i]); err != nil || info.Mode() != fs.ModeDir|0o755 {
			t.Errorf("volume %s: mode %v, %v, want 0755", paths[i], info.Mode(), err)
		}
	}
	for i, dir := range second {
		if dir != first[i] {
			t.Errorf("volume %s: the second time it is %s, the first time %s", paths[i], dir, first[i])
		}
	}
	if _, err := os.Stat(filepath.Join(first[4], "written")); err != nil {
		t.Errorf("what was written is gone: %v", err)
	}
	for _, path := range []string{"/file", "/file/below", "/loop"} {
		_, err := f.PrepareVolumeDirs(t.Context(), "c", root, append(paths, path), nil)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "Volumes of the image") || !strings.Contains(err.Error(), path) {
			t.Errorf("volume %s: got %v, want a refusal by name", path, err)
		}
	}
	mapped := f.rootfsOf("mapped", id)
	dirs, err := f.PrepareVolumeDirs(t.Context(), "mapped", mapped, []string{"/missing"}, &image.Mapping{UID: 100000, GID: 200000})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dirs[0], &st); err != nil || st.Uid != 100000 || st.Gid != 200000 {
		t.Errorf("owner of an empty volume: got %d:%d, %v, want root of the user namespace", st.Uid, st.Gid, err)
	}
	before, _, err := f.RootfsUsage(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(first[0], "large"), bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if after, _, err := f.RootfsUsage(t.Context(), "c"); err != nil || after < before+1<<20 {
		t.Errorf("usage: %d before and %d after 1 MiB was written into a volume, %v", before, after, err)
	}
}

// TestVolumeDirsAreLimited: what volumes copy counts as what layers unpack to, together and however often it is the same.
func TestVolumeDirsAreLimited(t *testing.T) {
	privilege.Root(t)
	f := newFixtureWith(t, image.Options{MaxUnpackedSize: 4 << 20}, registry.Options{})
	ref, _ := f.push("large:1", imagefactory.Spec{Layers: []imagefactory.Layer{{Files: []imagefactory.File{
		{Path: "data/file", Content: bytes.Repeat([]byte{0}, 1<<20)},
	}}}})
	root := f.rootfsOf("c", f.pull(ref))
	_, err := f.PrepareVolumeDirs(t.Context(), "c", root, []string{"/data", "/data/", "/./data", "/../data"}, nil)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "image.max_unpacked_size of 4194304") {
		t.Errorf("four copies of 1 MiB: got %v, want a refusal", err)
	}
	if _, err := f.PrepareVolumeDirs(t.Context(), "c", root, []string{"/data", "/data/"}, nil); err != nil {
		t.Errorf("two copies of 1 MiB: got %v", err)
	}
}

// TestVolumeDirsInCheckpoints: what is in a volume is exported with the changes of the container. Made again after an
// import, a volume has what it had, and not what was removed from it.
func TestVolumeDirsInCheckpoints(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("volumes:1", declaring())
	id := f.pull(ref)
	root, paths := f.rootfsOf("c1", id), []string{"/data", "/missing"}
	from, err := f.PrepareVolumeDirs(t.Context(), "c1", root, paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(filepath.Join(from[0], "file"), []byte("changed"), 0o600), os.WriteFile(filepath.Join(from[1], "new"), []byte("new"), 0o640),
		os.RemoveAll(filepath.Join(from[0], "sub")), os.Chown(from[1], 7, 8), os.Chmod(from[1], 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var changes bytes.Buffer
	removed, err := f.ExportRootfs(t.Context(), "c1", map[int]string{0: paths[0], 1: paths[1]}, &changes)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(removed, " "); got != "/data/gone /data/sub" { // the first one only a lower layer has
		t.Errorf("removed: got %q", got)
	}
	restored := f.rootfsOf("c2", id)
	if err := f.ImportRootfs(t.Context(), restored, &changes, removed); err != nil {
		t.Fatal(err)
	}
	to, err := f.PrepareVolumeDirs(t.Context(), "c2", restored, paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range paths {
		if got, want := listing(t, filepath.Dir(to[i])), listing(t, filepath.Dir(from[i])); got != want {
			t.Errorf("volume %s: got\n%s\nwant\n%s", path, got, want)
		}
	}
}
