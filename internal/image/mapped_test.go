package image_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/usermap"
)

const mappedRoot = 5 << 16

// mapping is that of a user namespace which lives as long as the test.
func mapping(t testing.TB) *image.Mapping {
	return &image.Mapping{User: fmt.Sprintf("/proc/self/fd/%d", usermap.User(t, mappedRoot).Fd()), UID: mappedRoot, GID: mappedRoot}
}

// A mapped root filesystem shows the owners of the image as a user namespace has them, keeps those of what is written,
// and changes nothing about the layers, which others use at the same time.
func TestMappedRootfs(t *testing.T) {
	privilege.Root(t)
	for name, layers := range map[string][]imagefactory.Layer{
		"one": {{Files: []imagefactory.File{imagefactory.Regular("mine", "x"), directory("dir", 0o755, 33)}}},
		"two": {
			{Files: []imagefactory.File{imagefactory.Regular("mine", "below"), imagefactory.Regular("gone", "x")}},
			{Files: []imagefactory.File{directory("dir", 0o755, 33), imagefactory.Whiteout("gone")}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			ref, _ := f.push("mapped:1", imagefactory.Spec{Layers: layers})
			id := f.pull(ref)
			target := filepath.Join(f.root, "target")
			m := mapping(t)
			for range 2 {
				if err := f.PrepareRootfs(t.Context(), "c1", id); err != nil {
					t.Fatal(err)
				}
				if err := f.MountRootfs(t.Context(), "c1", target, false, m); err != nil {
					t.Fatal(err)
				}
			}
			if n := mountsAt(t, target); n != 1 {
				t.Errorf("mounted %d times", n)
			}
			written := filepath.Join(target, "dir", "written")
			if err := os.WriteFile(written, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(written, mappedRoot+7, mappedRoot+7); err != nil {
				t.Fatal(err)
			}
			// A change of the file's own data copies it up, with the owner that is shown.
			if err := os.Chmod(filepath.Join(target, "mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := f.UnmountRootfs(t.Context(), target); err != nil {
				t.Fatal(err)
			}
			if err := f.MountRootfs(t.Context(), "c1", target, true, m); err != nil {
				t.Fatal(err)
			}
			for path, want := range map[string]uint32{"": 0, "mine": 0, "dir": 33, "dir/written": 7} {
				if got := usermap.Owner(t, filepath.Join(target, path)); got != mappedRoot+want {
					t.Errorf("/%s belongs to %d, want %d", path, got, mappedRoot+want)
				}
			}
			if _, err := os.Lstat(filepath.Join(target, "gone")); !os.IsNotExist(err) {
				t.Errorf("a file that a layer removes: %v", err)
			}
			if bytes, _, err := f.RootfsUsage(t.Context(), "c1"); err != nil || bytes == 0 {
				t.Errorf("usage: got %d, %v", bytes, err)
			}
			other := f.mounted(id)
			if got := usermap.Owner(t, filepath.Join(other, "dir")); got != 33 {
				t.Errorf("in a root filesystem without mapping a directory belongs to %d, want 33", got)
			}
			if err := f.UnmountRootfs(t.Context(), target); err != nil {
				t.Fatal(err)
			}
			if err := f.RemoveRootfs(t.Context(), "c1"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A mapped volume shows the owners of the image as a user namespace has them, whatever the number of its layers.
func TestMappedVolume(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	m := mapping(t)
	layers := []imagefactory.Layer{
		{Files: []imagefactory.File{directory("dir", 0o755, 33)}},
		{Files: []imagefactory.File{imagefactory.Regular("file", "x")}},
	}
	for n := range len(layers) + 1 {
		key := fmt.Sprintf("v%d", n)
		id := f.pull(f.put(key+":1", build(t, imagefactory.Spec{Layers: layers[:n]})))
		if err := f.PrepareVolume(t.Context(), key, id); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(f.root, "mnt-"+key)
		for range 2 {
			if err := f.MountVolume(t.Context(), key, target, m, ""); err != nil {
				t.Fatal(err)
			}
		}
		if got := usermap.Owner(t, target); got != mappedRoot {
			t.Errorf("volume of %d layers belongs to %d, want %d", n, got, mappedRoot)
		}
		if n > 0 {
			if got := usermap.Owner(t, filepath.Join(target, "dir")); got != mappedRoot+33 {
				t.Errorf("directory in a volume of %d layers belongs to %d, want %d", n, got, mappedRoot+33)
			}
		}
		if err := os.Mkdir(filepath.Join(target, "new"), 0o755); err == nil {
			t.Errorf("volume of %d layers was written to", n)
		}
		f.dropVolume(key, target)
	}
}

func TestTryMapping(t *testing.T) {
	privilege.Root(t)
	if err := newFixture(t).TryMapping(); err != nil {
		t.Error(err)
	}
}
