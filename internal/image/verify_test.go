package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
)

// crashed makes a store look as if the machine had gone down under it.
func crashed(t *testing.T, root string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, "session"), []byte("another-boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// settled waits until the store has verified everything.
func settled(t *testing.T, root string) {
	t.Helper()
	eventually(t, "the end of verification", func() bool {
		session, err := os.ReadFile(filepath.Join(root, "session"))
		return err == nil && !strings.HasPrefix(string(session), "another-boot")
	})
}

// The session file is there while the store is open. After a clean end, or if
// only the process was killed, nothing has to be verified.
func TestSession(t *testing.T) {
	privilege.Root(t)
	root, _, _, one, _ := closedStore(t)
	session := filepath.Join(root, "session")
	if _, err := os.Stat(session); !os.IsNotExist(err) {
		t.Errorf("closed store: got %v, want no session", err)
	}
	s := open(t, image.Options{Root: root})
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(session); err != nil || string(got) != string(boot) {
		t.Errorf("open store: got session %q, %v, want %q", got, err, boot)
	}
	mountAndCompare(t, s, root, "kept", "/file-a")
	if err := s.PrepareRootfs(t.Context(), "new", one.ID); err != nil {
		t.Error(err)
	}
}

// After the machine went down every image is read again. What is whole is used
// at once; what is not, and every image that shares the damage, is dropped
// before a container gets it; and a pull makes it whole.
func TestVerifyAfterPowerLoss(t *testing.T) {
	privilege.Root(t)
	for name, test := range map[string]struct {
		harm func(root string, a *imagefactory.Artifact) error
		// oneToo says that the first image shares the damage.
		oneToo bool
	}{
		"no-damage":          {func(string, *imagefactory.Artifact) error { return nil }, false},
		"empty-file":         {func(root string, _ *imagefactory.Artifact) error { return truncate(root, "file-c") }, false},
		"empty-shared-file":  {func(root string, _ *imagefactory.Artifact) error { return truncate(root, "file-a") }, true},
		"zeroes-in-file":     {func(root string, _ *imagefactory.Artifact) error { return zero(layerFile(root, "file-c")) }, false},
		"missing-file":       {func(root string, _ *imagefactory.Artifact) error { return os.Remove(layerFile(root, "file-c")) }, false},
		"zeroes-in-blob":     {func(root string, a *imagefactory.Artifact) error { return zero(blobFile(root, a, 2)) }, false},
		"zeroes-in-shared":   {func(root string, a *imagefactory.Artifact) error { return zero(blobFile(root, a, 0)) }, true},
		"directory-for-file": {func(root string, _ *imagefactory.Artifact) error { return replace(layerFile(root, "file-c")) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			root, refOne, refTwo, one, two := closedStore(t)
			damaged := name != "no-damage"
			if err := test.harm(root, two); err != nil {
				t.Fatal(err)
			}
			crashed(t, root)
			s := open(t, image.Options{Root: root})
			if err := s.PrepareRootfs(t.Context(), "early", two.ID); damaged != errdefs.IsNotFound(err) {
				t.Errorf("container of the second image: got %v", err)
			}
			settled(t, root)
			if _, err := s.Resolve(refTwo); damaged != errdefs.IsNotFound(err) {
				t.Errorf("second image: got %v", err)
			}
			if _, err := s.Resolve(refOne); test.oneToo != errdefs.IsNotFound(err) {
				t.Errorf("first image: got %v", err)
			}
			for ref, want := range map[string]*imagefactory.Artifact{refOne: one, refTwo: two} {
				if id, err := s.Pull(t.Context(), ref, image.Auth{}); err != nil || id != want.ID {
					t.Fatalf("repair: got %q, %v", id, err)
				}
			}
			if err := s.PrepareRootfs(t.Context(), "late", two.ID); err != nil {
				t.Fatal(err)
			}
			mountAndCompare(t, s, root, "late", "/file-c")
			for _, file := range []string{"file-a", "file-b", "file-c"} {
				if stat, err := os.Stat(layerFile(root, file)); err != nil || stat.Size() < 200<<10 {
					t.Errorf("%s after the repair: got %v, %v", file, stat, err)
				}
			}
		})
	}
}

// Root filesystems from before the machine went down hold nothing any more:
// they can be removed, not mounted.
func TestRootfsAfterPowerLoss(t *testing.T) {
	privilege.Root(t)
	root, _, _, _, _ := closedStore(t)
	crashed(t, root)
	s := open(t, image.Options{Root: root})
	if err := s.MountRootfs(t.Context(), "kept", filepath.Join(root, "target"), false, nil); !errdefs.IsNotFound(err) {
		t.Errorf("mount: got %v, want not found", err)
	}
	if keys, err := s.RootfsKeys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("keys: got %v, %v, want it listed", keys, err)
	}
	if err := s.RemoveRootfs(t.Context(), "kept"); err != nil {
		t.Error(err)
	}
	settled(t, root)
}

// Every kind of file that an image can have is recognised as whole.
func TestVerifyKnowsEveryKind(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, a := f.push("kinds:1", imagefactory.Spec{Layers: []imagefactory.Layer{
		{Files: []imagefactory.File{
			imagefactory.Dir("dir"), imagefactory.Regular("dir/file", "first"), imagefactory.Regular("dir/file", "second"),
			imagefactory.Hardlink("again", "dir/file"), imagefactory.Symlink("link", "dir"), imagefactory.Regular("link/through", "x"),
			{Path: "null", Kind: '3', Major: 1, Minor: 3}, {Path: "pipe", Kind: '6'}, imagefactory.Regular("implied/file", ""),
			imagefactory.Dir("turned"), imagefactory.Regular("turned/inside", "x"), imagefactory.Regular("turned", "now a file"),
		}},
		{Compression: imagefactory.Zstd, Files: []imagefactory.File{
			imagefactory.Whiteout("again"), imagefactory.Dir("dir"), imagefactory.Opaque("dir"), imagefactory.Regular("dir/new", "y"),
		}},
	}})
	f.pull(ref)
	if err := f.Store.Close(); err != nil {
		t.Fatal(err)
	}
	crashed(t, f.root)
	f.Store = open(t, image.Options{Root: f.root})
	settled(t, f.root)
	if found := f.resolve(ref); found.ID != a.ID {
		t.Errorf("got %s, want %s", found.ID, a.ID)
	}
}

// A store that is closed before everything is verified goes on at the next
// start.
func TestVerificationIsTakenUp(t *testing.T) {
	privilege.Root(t)
	root, _, refTwo, _, _ := closedStore(t)
	if err := truncate(root, "file-c"); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		crashed(t, root)
		s, err := image.Open(t.Context(), image.Options{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = os.Stat(filepath.Join(root, "session"))
		if _, gone := s.Resolve(refTwo); gone == nil && err != nil {
			t.Fatal("the store was closed as verified but has the damaged image")
		}
	}
	s := open(t, image.Options{Root: root})
	eventually(t, "the damaged image to be dropped", func() bool {
		_, err := s.Resolve(refTwo)
		return errdefs.IsNotFound(err)
	})
}

func layerFile(root, name string) string {
	found, err := filepath.Glob(filepath.Join(root, "store-1/snapshots/*/fs", name))
	if err != nil || len(found) == 0 {
		return filepath.Join(root, "no-such-file")
	}
	return found[0]
}

func blobFile(root string, a *imagefactory.Artifact, layer int) string {
	return filepath.Join(root, "store-1/content/blobs/sha256", a.Layers[layer].Digest.Encoded())
}

func truncate(root, name string) error { return os.Truncate(layerFile(root, name), 0) }

// zero keeps a file's length and loses what is in it.
func zero(path string) error {
	stat, err := os.Stat(path)
	if err != nil {
		return err
	}
	return errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, make([]byte, stat.Size()), 0o600))
}

func replace(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }
