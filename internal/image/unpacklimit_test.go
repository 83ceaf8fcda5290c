package image_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/registry"
)

// TestUnpackLimits pulls images that are small in the registry and large, deep or odd once they are unpacked.
// Each is refused by the name of the limit and leaves nothing; an image at the limit is pulled.
func TestUnpackLimits(t *testing.T) {
	const limit = 4 << 20
	f := newFixtureWith(t, image.Options{MaxUnpackedSize: limit}, registry.Options{})
	zeros := func(name string, size int) imagefactory.File {
		return imagefactory.File{Path: name, Content: bytes.Repeat([]byte{0}, size)}
	}
	xattrs := map[string]string{}
	for len(xattrs) <= 256 {
		xattrs["user."+strings.Repeat("x", len(xattrs)+1)] = ""
	}
	for name, c := range map[string]struct {
		layers []imagefactory.Layer
		want   string
	}{
		"one-layer": {[]imagefactory.Layer{{Files: []imagefactory.File{zeros("a", limit+1)}}}, "image.max_unpacked_size"},
		"zstd": {[]imagefactory.Layer{{Compression: imagefactory.Zstd, Files: []imagefactory.File{zeros("a", 8*limit)}}},
			"image.max_unpacked_size"},
		"many-layers": {[]imagefactory.Layer{
			{Files: []imagefactory.File{zeros("a", limit/2)}}, {Files: []imagefactory.File{zeros("b", limit/2)}},
			{Files: []imagefactory.File{zeros("c", limit/2)}},
		}, "image.max_unpacked_size"},
		"deep": {[]imagefactory.Layer{{Files: []imagefactory.File{zeros(strings.Repeat("d/", 300)+"f", 1)}}}, "depth of an entry"},
		"long": {[]imagefactory.Layer{{Files: []imagefactory.File{zeros(strings.Repeat(strings.Repeat("n", 200)+"/", 21)+"f", 1)}}},
			"length of an entry's name"},
		"link": {[]imagefactory.Layer{{Files: []imagefactory.File{imagefactory.Symlink("l", strings.Repeat("t/", 2100))}}},
			"length of a link's target"},
		"xattrs": {[]imagefactory.Layer{{Files: []imagefactory.File{{Path: "f", Xattrs: xattrs}}}}, "extended attributes"},
	} {
		ref, _ := f.push(name+":1", imagefactory.Spec{Layers: c.layers})
		_, err := f.Pull(t.Context(), ref, image.Auth{})
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in an error of the kind FailedPrecondition", name, err, c.want)
		}
		f.nothingLeft()
	}
	ref, _ := f.push("fits:1", imagefactory.Spec{Layers: []imagefactory.Layer{{Files: []imagefactory.File{zeros("a", limit/2)}}}})
	f.pull(ref)
}
