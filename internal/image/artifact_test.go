package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
)

// mixed is an artifact with a file and an archive.
func mixed(t *testing.T) *imagefactory.Artifact {
	t.Helper()
	return files(t, imagefactory.Blob{MediaType: "text/plain", Content: []byte("a file"), Title: "file"},
		imagefactory.Blob{Archive: &imagefactory.Layer{Files: []imagefactory.File{imagefactory.Regular("unpacked", "an entry")}}})
}

// After the machine went down an artifact whose blobs are whole is laid out
// again before it is mounted; one whose blobs are not has to be pulled.
func TestVerifyArtifactAfterPowerLoss(t *testing.T) {
	privilege.Root(t)
	for name, wholeBlobs := range map[string]bool{"tree": true, "blob": false} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			a := mixed(t)
			ref := f.put("mixed:1", a)
			id := f.pull(ref)
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			harmed := filepath.Join(f.root, "store-1", "artifacts", strings.Replace(id, ":", "-", 1), "tree", "unpacked")
			if !wholeBlobs {
				harmed = filepath.Join(f.root, "store-1", "content", "blobs", "sha256", a.Layers[0].Digest.Encoded())
			}
			if err := os.Truncate(harmed, 0); err != nil {
				t.Fatal(err)
			}
			crashed(t, f.root)
			f.Store = open(t, image.Options{Root: f.root})
			if !wholeBlobs {
				if err := f.PrepareVolume(t.Context(), "v", id); !errdefs.IsNotFound(err) {
					t.Errorf("prepare: got %v, want not found", err)
				}
				settled(t, f.root)
				f.pull(ref)
			}
			target := f.volume("v", id)
			if got := tree(t, target); got != "/file -r--r--r-- a file\n/unpacked -rw-r--r-- an entry" {
				t.Errorf("content: got\n%s", got)
			}
			f.dropVolume("v", target)
			settled(t, f.root)
		})
	}
}

// Pulls and removals of an artifact at the same time end in one or the other:
// while it is there it can be mounted, and when it is gone nothing is left.
func TestArtifactComesAndGoes(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref := f.put("mixed:1", mixed(t))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 5 {
				if _, err := f.Pull(t.Context(), ref, image.Auth{}); err != nil {
					t.Errorf("pull: %v", err)
				}
			}
		})
		all.Go(func() {
			for range 10 {
				if err := f.Remove(t.Context(), ref); err != nil && !errdefs.IsNotFound(err) {
					t.Errorf("remove: %v", err)
				}
				if err := f.GC(t.Context()); err != nil {
					t.Errorf("collect: %v", err)
				}
			}
		})
	}
	all.Wait()
	target := f.volume("v", f.pull(ref))
	if got := tree(t, target); !strings.Contains(got, "/file ") || !strings.Contains(got, "/unpacked ") {
		t.Errorf("content: got\n%s", got)
	}
	f.dropVolume("v", target)
	if err := errors.Join(f.Remove(t.Context(), ref), f.GC(t.Context())); err != nil {
		t.Fatal(err)
	}
	f.nothingLeft()
	if left, err := filepath.Glob(filepath.Join(f.root, "store-1", "artifacts", "*")); err != nil || len(left) != 0 {
		t.Errorf("trees left: got %v, %v", left, err)
	}
}
