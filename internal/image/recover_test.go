package image_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// closedStore pulls two images with a layer in common, makes a root filesystem
// on the first one, and closes the store.
func closedStore(t *testing.T) (root, refOne, refTwo string, one, two *imagefactory.Artifact) {
	t.Helper()
	leakcheck.Check(t)
	root = ramDisk(t, "1g")
	refOne, refTwo, one, two = closedStoreIn(t, root)
	return root, refOne, refTwo, one, two
}

func closedStoreIn(t *testing.T, root string) (refOne, refTwo string, one, two *imagefactory.Artifact) {
	t.Helper()
	reg := registry.Run(t, registry.Options{})
	one = build(t, bigger(2))
	spec := bigger(3)
	spec.Config.Cmd = []string{"/other"}
	two = build(t, spec)
	refOne = imagefactory.MustPush(t, reg.Host, "one:1", one)
	refTwo = imagefactory.MustPush(t, reg.Host, "two:1", two)
	s, err := image.Open(t.Context(), image.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{refOne, refTwo} {
		if _, err := s.Pull(t.Context(), ref, image.Auth{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.PrepareRootfs(t.Context(), "kept", one.ID), s.Close()); err != nil {
		t.Fatal(err)
	}
	return refOne, refTwo, one, two
}

// What a store had it has after a restart: images, names and root filesystems.
func TestReopen(t *testing.T) {
	privilege.Root(t)
	root, refOne, _, one, two := closedStore(t)
	s := open(t, image.Options{Root: root, Pinned: []string{refOne}})
	if list := s.List(); len(list) != 2 {
		t.Fatalf("list: got %d images, want 2", len(list))
	}
	found, err := s.Resolve(refOne)
	if err != nil || found.ID != one.ID || !found.Pinned {
		t.Errorf("first image: got %+v, %v, want it pinned", found, err)
	}
	if found, err := s.Resolve(two.ID); err != nil || found.Pinned {
		t.Errorf("second image: got %+v, %v, want it not pinned", found, err)
	}
	if keys, err := s.RootfsKeys(t.Context()); err != nil || len(keys) != 1 || keys[0] != "kept" {
		t.Errorf("root filesystems: got %v, %v", keys, err)
	}
	mountAndCompare(t, s, root, "kept", "/file-b")
	if info, err := s.FsInfo(t.Context()); err != nil || info.UsedBytes < 2*3*200<<10 || info.Inodes == 0 || info.Mountpoint != root {
		t.Errorf("usage: got %+v, %v", info, err)
	}
}

// mountAndCompare mounts a root filesystem and looks for a file.
func mountAndCompare(t *testing.T, s *image.Store, root, key, file string) {
	t.Helper()
	target := filepath.Join(root, "mnt-"+key)
	if err := s.MountRootfs(t.Context(), key, target, false, nil); err != nil {
		t.Error(err)
		return
	}
	if got := tree(t, target); !strings.Contains(got, file+" -rw-r--r-- ") {
		t.Errorf("root filesystem %s: got %.300q", key, got)
	}
	if err := s.UnmountRootfs(t.Context(), target); err != nil {
		t.Error(err)
	}
}

// Two processes do not use one store.
func TestStoreIsLocked(t *testing.T) {
	privilege.Root(t)
	root, _, _, _, _ := closedStore(t)
	open(t, image.Options{Root: root})
	if _, err := image.Open(t.Context(), image.Options{Root: root}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want failed precondition", err)
	}
}

// An image of which a blob or a layer is missing or cut is not listed as
// present; the other one is; and a pull repairs it.
func TestBrokenImageIsRepaired(t *testing.T) {
	privilege.Root(t)
	blob := func(digest string) string {
		return filepath.Join("store-1/content/blobs/sha256", strings.TrimPrefix(digest, "sha256:"))
	}
	for name, harm := range map[string]func(root string, a *imagefactory.Artifact) error{
		"layer-blob-missing": func(root string, a *imagefactory.Artifact) error {
			return os.Remove(filepath.Join(root, blob(a.Layers[2].Digest.String())))
		},
		"layer-blob-cut": func(root string, a *imagefactory.Artifact) error {
			return os.Truncate(filepath.Join(root, blob(a.Layers[2].Digest.String())), 10)
		},
		"configuration-missing": func(root string, a *imagefactory.Artifact) error {
			return os.Remove(filepath.Join(root, blob(a.ID)))
		},
		"manifest-missing": func(root string, a *imagefactory.Artifact) error {
			return os.Remove(filepath.Join(root, blob(a.Descriptor.Digest.String())))
		},
		"layer-missing": func(root string, _ *imagefactory.Artifact) error {
			// The third layer is the only one that just the second image has.
			found, err := filepath.Glob(filepath.Join(root, "store-1/snapshots/*/fs/file-c"))
			if err != nil || len(found) != 1 {
				return errors.Join(err, errors.New("the layer is not where it should be"))
			}
			return os.RemoveAll(filepath.Dir(filepath.Dir(found[0])))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, refOne, refTwo, one, two := closedStore(t)
			if err := harm(root, two); err != nil {
				t.Fatal(err)
			}
			s := open(t, image.Options{Root: root})
			if _, err := s.Resolve(refTwo); !errdefs.IsNotFound(err) {
				t.Errorf("broken image: got %v, want not found", err)
			}
			if found, err := s.Resolve(refOne); err != nil || found.ID != one.ID {
				t.Errorf("other image: got %v, %v", found, err)
			}
			if id, err := s.Pull(t.Context(), refTwo, image.Auth{}); err != nil || id != two.ID {
				t.Fatalf("repair: got %q, %v", id, err)
			}
			if err := s.PrepareRootfs(t.Context(), "repaired", two.ID); err != nil {
				t.Fatal(err)
			}
			mountAndCompare(t, s, root, "repaired", "/file-c")
		})
	}
}

// When a database cannot be read the store opens all the same, and its images
// come back from their blobs without a registry. Root filesystems work
// throughout. The damaged file is kept.
func TestDamagedDatabase(t *testing.T) {
	privilege.Root(t)
	overwrite := func(path string) error {
		return os.WriteFile(path, []byte(strings.Repeat("not a database ", 1000)), 0o600)
	}
	for name, test := range map[string]struct {
		file string
		harm func(path string) error
	}{
		"metadata-garbage":  {"meta.db", overwrite},
		"metadata-missing":  {"meta.db", os.Remove},
		"metadata-empty":    {"meta.db", func(path string) error { return os.Truncate(path, 0) }},
		"metadata-cut":      {"meta.db", func(path string) error { return os.Truncate(path, 9000) }},
		"metadata-holes":    {"meta.db", punch},
		"snapshots-garbage": {"metadata.db", overwrite},
		"snapshots-missing": {"metadata.db", os.Remove},
	} {
		t.Run(name, func(t *testing.T) {
			root, refOne, refTwo, one, two := closedStore(t)
			if err := test.harm(filepath.Join(root, "store-1", test.file)); err != nil {
				t.Fatal(err)
			}
			s := open(t, image.Options{Root: root})
			mountAndCompare(t, s, root, "kept", "/file-b")
			for ref, want := range map[string]*imagefactory.Artifact{refOne: one, refTwo: two} {
				eventually(t, ref+" to come back", func() bool {
					found, err := s.Resolve(ref)
					return err == nil && found.ID == want.ID
				})
			}
			eventually(t, "the restoration to be complete", func() bool {
				_, err := os.Stat(filepath.Join(root, "store-1/restored"))
				return err == nil
			})
			if err := s.PrepareRootfs(t.Context(), "new", two.ID); err != nil {
				t.Fatal(err)
			}
			mountAndCompare(t, s, root, "new", "/file-c")
			// The old layers stay for the old container, and go with it.
			mountAndCompare(t, s, root, "kept", "/file-b")
			if err := errors.Join(s.RemoveRootfs(t.Context(), "kept"), s.GC(t.Context())); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(root, "store-1/snapshots")); !os.IsNotExist(err) {
				t.Errorf("the damaged store's layers: got %v, want that they are gone", err)
			}
		})
	}
}

// A damaged list of free pages is found only when the database is opened for
// writing.
func TestDamagedFreelist(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	root := leakcheck.Dir(t) // bbolt keeps the file mapped, which would keep a file system in memory busy
	refOne, _, one, _ := closedStoreIn(t, root)
	path := filepath.Join(root, "store-1/meta.db")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for meta := range 2 {
		// A meta page: header of 16 bytes, four words, the root bucket, then the
		// number of the page with the list.
		list := binary.NativeEndian.Uint64(data[meta*os.Getpagesize()+48:])
		page := data[int(list)*os.Getpagesize():]
		copy(page[8:], "\xa5\xa5")
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, image.Options{Root: root})
	eventually(t, "the image to come back", func() bool {
		found, err := s.Resolve(refOne)
		return err == nil && found.ID == one.ID
	})
	eventually(t, "the restoration to be complete", func() bool {
		_, err := os.Stat(filepath.Join(root, "store-1/restored"))
		return err == nil
	})
}

// punch overwrites everything but the two first pages, which say where the
// rest is.
func punch(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for i := 2 * os.Getpagesize(); i < len(data); i++ {
		data[i] = 0xa5
	}
	return os.WriteFile(path, data, 0o600)
}

// With the list of names lost as well nothing is wiped: the blobs are left for
// inspection, and the store works.
func TestDamagedNames(t *testing.T) {
	privilege.Root(t)
	root, refOne, _, one, _ := closedStore(t)
	for _, path := range []string{"names.json", "store-1/meta.db"} {
		if err := os.WriteFile(filepath.Join(root, path), []byte("{ nonsense"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		s, err := image.Open(t.Context(), image.Options{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		if id, err := s.Pull(t.Context(), refOne, image.Auth{}); err != nil || id != one.ID {
			t.Errorf("got %q, %v", id, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	blobs, err := filepath.Glob(filepath.Join(root, "store-1/content/blobs/sha256/*"))
	if err != nil || len(blobs) == 0 {
		t.Errorf("the blobs of the damaged store: got %d, %v, want them untouched", len(blobs), err)
	}
}
