package image_test

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// reached is in the refusal of what is larger than allowed.
var reached = regexp.MustCompile(`layer sha256:[0-9a-f]{64}.*: unpacked size reached \d+ bytes, above image\.max_unpacked_size of 4194304 bytes`)

// TestUnpackLimits pulls images that are small in the registry and large, deep or odd once they are unpacked.
// Each is refused by the name of the limit and leaves nothing; an image at the limit is pulled. The files and archives
// of an artifact count together.
func TestUnpackLimits(t *testing.T) {
	privilege.Root(t)
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
	archive := func(size int) imagefactory.Blob {
		return imagefactory.Blob{Archive: &imagefactory.Layer{Files: []imagefactory.File{zeros(fmt.Sprint("f", size), size)}}}
	}
	file := func(title string, size int) imagefactory.Blob {
		return imagefactory.Blob{MediaType: "text/plain", Title: title, Content: bytes.Repeat([]byte(title), size)}
	}
	for name, blobs := range map[string][]imagefactory.Blob{
		"archives":         {archive(limit / 2), archive(limit/2 + 1)},
		"file":             {file("a", limit+1)},
		"files":            {file("a", limit/2), file("b", limit/2+1)},
		"file and archive": {file("c", limit/2), archive(limit/2 + 1)},
	} {
		a := files(t, blobs...)
		ref := f.put(strings.ReplaceAll(name, " ", "-")+":1", a)
		_, err := f.Pull(t.Context(), ref, image.Auth{})
		if !errdefs.IsFailedPrecondition(err) || !reached.MatchString(fmt.Sprint(err)) {
			t.Errorf("artifact with %s: got %v, want a refusal with layer, size, key and limit", name, err)
		}
		if total := len(blobs[0].Content) + len(blobs[len(blobs)-1].Content); total > limit && f.proxy.Count("GET", a.Layers[0].Digest.String()) > 0 {
			t.Errorf("artifact with %s: it was fetched although its manifest says how large it is", name)
		}
		f.nothingLeft()
	}
	f.pull(f.put("artifact-fits:1", files(t, file("a", limit/4), archive(limit/4))))
	ref, _ := f.push("fits:1", imagefactory.Spec{Layers: []imagefactory.Layer{{Files: []imagefactory.File{zeros("a", limit/2)}}}})
	f.pull(ref)
}
