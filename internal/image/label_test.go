package image_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/internal/selinux"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// Where the host has SELinux, all files of a labelled volume or root filesystem have its label, whatever the number of layers
// and with and without a mapping; the files of the image keep theirs. Elsewhere there is no label to give. The store is on
// disk: a file system in memory can be mapped since Linux 6.3.
func TestLabelledMounts(t *testing.T) {
	privilege.Root(t)
	labels, err := selinux.ForPod(selinux.Options{}) // before the leak check: its library keeps /proc open for good
	if err != nil {
		t.Fatal(err)
	}
	defer selinux.Release(labels)
	leakcheck.Check(t)
	f := newFixtureWith(t, image.Options{Root: leakcheck.Dir(t)}, registry.Options{})
	layers := []imagefactory.Layer{
		{Files: []imagefactory.File{imagefactory.Regular("below", "x")}},
		{Files: []imagefactory.File{imagefactory.Regular("above", "x")}},
	}
	for n := range len(layers) + 1 {
		id := f.pull(f.put(fmt.Sprintf("l%d:1", n), build(t, imagefactory.Spec{Layers: layers[:n]})))
		for how, m := range map[string]*image.Mapping{"plain": nil, "mapped": mapping(t)} {
			key := fmt.Sprintf("%s%d", how, n)
			target := filepath.Join(f.root, "mnt-"+key)
			must(t, f.PrepareVolume(t.Context(), key, id))
			must(t, f.MountVolume(t.Context(), key, target, m, labels.Mount))
			checkLabels(t, target, labels.Mount, n)
			f.dropVolume(key, target)

			must(t, f.PrepareRootfs(t.Context(), key, id))
			if labels.Mount != "" {
				must(t, f.LabelRootfs(key, labels.Mount))
			}
			must(t, f.MountRootfs(t.Context(), key, target, false, m))
			checkLabels(t, target, labels.Mount, n)
			must(t, f.UnmountRootfs(t.Context(), target))
			must(t, f.RemoveRootfs(t.Context(), key))
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// checkLabels looks for a number of files in a directory, all with a label unless that is empty.
func checkLabels(t *testing.T, dir, want string, files int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != files {
		t.Errorf("%s: got %v, %v, want %d files", dir, entries, err, files)
	}
	if want == "" {
		return
	}
	paths := []string{dir}
	for _, entry := range entries {
		paths = append(paths, filepath.Join(dir, entry.Name()))
	}
	for _, path := range paths {
		data := make([]byte, 256)
		n, err := unix.Lgetxattr(path, "security.selinux", data)
		if got := string(data[:max(n, 0)]); err != nil || got != want && got != want+"\x00" {
			t.Errorf("label of %s: got %q, %v, want %q", path, got, err, want)
		}
	}
}
