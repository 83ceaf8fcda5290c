package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzArtifactTitle lays a file out with an untrusted name, beside
// links that an archive could bring. It lands within the tree or is refused.
func FuzzArtifactTitle(f *testing.F) {
	for _, seed := range []string{
		"a", "a/b", "../a", "a/../../b", "/a", ".", "..", "./a", "a/", "a//b", "out/a", "up/a", "loop/a", "file/a", "a\x00b",
		strings.Repeat("a", 300), strings.Repeat("a/", 3000), "out", "up/../..",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, title string) {
		root := t.TempDir()
		tree := filepath.Join(root, "above", "tree")
		if err := os.MkdirAll(tree, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, target := range map[string]string{"out": root, "up": "../..", "loop": "loop"} {
			if err := os.Symlink(target, filepath.Join(tree, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(tree, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		layer := ocispec.Descriptor{Annotations: map[string]string{ocispec.AnnotationTitle: title}}
		layer.Digest = "sha256:" + "0123456789abcdef"
		at, err := placeOf(tree, layer)
		if err != nil {
			if title == "" {
				t.Errorf("no title: got %v, want the digest's name", err)
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("title %q: got %v, want invalid argument", title, err)
			}
		} else if !strings.HasPrefix(at, tree+"/") {
			t.Errorf("title %q leads to %s, outside of %s", title, at, tree)
		}
		for _, dir := range []string{root, filepath.Dir(tree)} {
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Errorf("title %q: %s holds %v, %v; something was made outside of the tree", title, dir, entries, err)
			}
		}
	})
}
