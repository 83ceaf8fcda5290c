package image_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// volume makes and mounts a volume, twice: both may be repeated.
func (f *fixture) volume(key, id string) (target string) {
	f.t.Helper()
	target = filepath.Join(f.root, "mnt-"+key)
	for range 2 {
		if err := f.PrepareVolume(f.t.Context(), key, id); err != nil {
			f.t.Fatal(err)
		}
		if err := f.MountVolume(f.t.Context(), key, target, nil, ""); err != nil {
			f.t.Fatal(err)
		}
	}
	return target
}

func (f *fixture) dropVolume(key, target string) {
	f.t.Helper()
	for range 2 {
		if err := f.UnmountRootfs(f.t.Context(), target); err != nil {
			f.t.Fatal(err)
		}
		if err := f.RemoveVolume(f.t.Context(), key); err != nil {
			f.t.Fatal(err)
		}
	}
}

// A volume shows an image of any number of layers, and cannot be written to.
func TestVolume(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	empty := build(t, imagefactory.Spec{})
	two := build(t, imagefactory.Spec{Layers: []imagefactory.Layer{
		{Files: []imagefactory.File{imagefactory.Regular("gone", "x"), imagefactory.Regular("kept", "below")}},
		{Files: []imagefactory.File{imagefactory.Whiteout("gone"), imagefactory.Regular("new", "above")}},
	}})
	for name, c := range map[string]struct {
		artifact *imagefactory.Artifact
		want     string
	}{
		"none": {empty, ""},
		"one":  {build(t, hello()), "/hello -rw-r--r-- world"},
		"two":  {two, "/kept -rw-r--r-- below\n/new -rw-r--r-- above"},
	} {
		ref := f.put(name+":1", c.artifact)
		target := f.volume(name, f.pull(ref))
		if got := tree(t, target); got != c.want {
			t.Errorf("%s layers: got\n%s\nwant\n%s", name, got, c.want)
		}
		if err := os.WriteFile(filepath.Join(target, "written"), nil, 0o644); err == nil {
			t.Errorf("%s layers: the volume was written to", name)
		}
		f.dropVolume(name, target)
	}
	if keys, err := f.VolumeKeys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("keys: got %v, %v, want none", keys, err)
	}
}

// put pushes what is built already, and returns its reference.
func (f *fixture) put(name string, a *imagefactory.Artifact) string {
	f.t.Helper()
	imagefactory.MustPush(f.t, f.reg.Host, name, a)
	return f.proxy.Host + "/" + name
}

// What a volume shows stays when the image is removed, over a restart too, and
// goes with the volume. The same holds for artifacts.
func TestRemoveImageOfVolume(t *testing.T) {
	privilege.Root(t)
	bundle := files(t, imagefactory.Blob{MediaType: "text/plain", Content: []byte("weights"), Title: "model/weights.bin"})
	for name, a := range map[string]*imagefactory.Artifact{"image": build(t, bigger(2)), "artifact": bundle} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			ref := f.put("it:1", a)
			id := f.pull(ref)
			target := f.volume("v1", id)
			want := tree(t, target)
			if err := f.Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			f.reopen(t)
			if err := f.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := f.PrepareVolume(t.Context(), "v1", id); err != nil {
				t.Errorf("prepare again: %v", err)
			}
			if got := tree(t, target); got != want || want == "" {
				t.Errorf("after the image is gone: got\n%s\nwant\n%s", got, want)
			}
			f.dropVolume("v1", target)
			if err := f.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
			if info, err := f.FsInfo(t.Context()); err != nil || info.UsedBytes != 0 {
				t.Errorf("bytes left: got %d, %v", info.UsedBytes, err)
			}
			if left, err := filepath.Glob(filepath.Join(f.root, "store-1", "artifacts", "*")); err != nil || len(left) != 0 {
				t.Errorf("trees left: got %v, %v", left, err)
			}
		})
	}
}

func files(t *testing.T, blobs ...imagefactory.Blob) *imagefactory.Artifact {
	t.Helper()
	a, err := imagefactory.BuildBundle(imagefactory.Bundle{Type: "application/vnd.example.model", Blobs: blobs})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// reopen closes the store and opens it again, as a restart of the daemon does.
func (f *fixture) reopen(t *testing.T) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.Store = open(t, image.Options{Root: f.root})
}

// A layer of an artifact is a file with the layer's title, or else its digest;
// an archive of an image's type is unpacked unless it has a title, as a plain
// file of ORAS does.
func TestArtifact(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	archive := &imagefactory.Layer{Files: []imagefactory.File{
		imagefactory.Regular("docs/a", "unpacked"), imagefactory.Symlink("out", "/"),
	}}
	untitled := imagefactory.Blob{MediaType: "application/x-thing", Content: []byte("no name")}
	a := files(t,
		imagefactory.Blob{MediaType: "text/plain", Content: []byte("one"), Title: "dir/one.txt"},
		imagefactory.Blob{MediaType: "application/vnd.oci.image.layer.v1.tar", Content: []byte("no archive"), Title: "two.txt"},
		imagefactory.Blob{Archive: archive},
		imagefactory.Blob{MediaType: "text/plain", Content: []byte("through a link"), Title: "out/three.txt"},
		untitled)
	ref := f.put("model:1", a)
	id := f.pull(ref)
	if id != a.Descriptor.Digest.String() {
		t.Errorf("ID: got %s, want the manifest's digest %s", id, a.Descriptor.Digest)
	}
	for range 2 {
		got, err := f.Resolve(ref)
		if err != nil || got.ID != id || got.ArtifactType != "application/vnd.example.model" || got.Size == 0 {
			t.Fatalf("resolve: got %+v, %v", got, err)
		}
		target := f.volume("v1", id)
		want := strings.Join([]string{
			"/dir drwxr-xr-x", "/dir/one.txt -r--r--r-- one", "/docs drwxr-xr-x", "/docs/a -rw-r--r-- unpacked",
			"/" + a.Layers[4].Digest.Encoded() + " -r--r--r-- no name", "/out Lrwxrwxrwx -> /",
			"/three.txt -r--r--r-- through a link", "/two.txt -r--r--r-- no archive",
		}, "\n")
		if got := tree(t, target); got != want {
			t.Errorf("content: got\n%s\nwant\n%s", got, want)
		}
		f.dropVolume("v1", target)
		f.reopen(t)
	}
	if again := f.pull(ref); again != id {
		t.Errorf("pulled again: got %s", again)
	}
	if err := f.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Resolve(id); !errdefs.IsNotFound(err) {
		t.Errorf("removed: got %v", err)
	}
}

// Artifacts whose configuration is the same, empty one are different images.
func TestArtifactsAreApart(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	one := f.put("one:1", files(t, imagefactory.Blob{MediaType: "a/b", Content: []byte("1"), Title: "f"}))
	two := f.put("two:1", files(t, imagefactory.Blob{MediaType: "a/b", Content: []byte("2"), Title: "f"}))
	if f.pull(one) == f.pull(two) {
		t.Error("they have the same ID")
	}
	if n := len(f.List()); n != 2 {
		t.Errorf("listed: got %d images, want 2", n)
	}
}

// An artifact whose files have names that lead elsewhere, or the same name, is
// refused and leaves nothing.
func TestArtifactTitles(t *testing.T) {
	privilege.Root(t)
	f := newFixtureWith(t, image.Options{}, registry.Options{})
	for name, titles := range map[string][]string{
		"up": {"../x"}, "deep": {"a/../../x"}, "absolute": {"/etc/x"}, "dot": {"."}, "twice": {"x", "x"}, "beneath": {"x", "x/y"},
	} {
		var blobs []imagefactory.Blob
		for _, title := range titles {
			blobs = append(blobs, imagefactory.Blob{MediaType: "text/plain", Content: []byte(title), Title: title})
		}
		ref := f.put(name+":1", files(t, blobs...))
		_, err := f.Pull(t.Context(), ref, image.Auth{})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "org.opencontainers.image.title") {
			t.Errorf("%s: got %v, want invalid argument that names the title", name, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(f.root, "store-1", "artifacts", "*")); err != nil || len(left) != 0 {
		t.Errorf("trees left: got %v, %v", left, err)
	}
	if info, err := f.FsInfo(t.Context()); err != nil || info.UsedBytes != 0 {
		t.Errorf("bytes left: got %d, %v", info.UsedBytes, err)
	}
}
