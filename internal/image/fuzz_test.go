package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzReference gives what a client may send as a reference to the parser and
// to an index. What is accepted has one full form, which means itself; what is
// resolved has the name or the ID that was asked for.
func FuzzReference(f *testing.F) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for _, seed := range []string{
		"", "busybox", "busybox:1", "docker.io/library/busybox", "host:5000/a/b:c", "host:5000/a/b@sha256:" + hex,
		"a:b@sha256:" + hex, "sha256:" + hex, hex, hex[:12], "sha256:0", "UPPER", "a//b", "-a", "a:", "a@", "a@sha256:x",
		"[::1]:5000/a", "xn--80ak6aa92e.com/a", strings.Repeat("a/", 200), "\x00", "a b", "ä",
	} {
		f.Add(seed)
	}
	found := &Image{ID: idAlgorithm + hex, names: []string{"docker.io/library/busybox:latest"}}
	only := newIndex([]*Image{found})
	f.Fuzz(func(t *testing.T, ref string) {
		named, err := parseReference(ref)
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Fatalf("parse %q: got %v, want invalid argument", ref, err)
		}
		if err == nil {
			again, err := parseReference(named.String())
			if err != nil || again.String() != named.String() {
				t.Fatalf("parse %q: its full form %q gives %v, %v", ref, named, again, err)
			}
		}
		image, err := only.resolve(ref)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) {
				t.Fatalf("resolve %q: got %v", ref, err)
			}
			return
		}
		digits := strings.TrimPrefix(ref, idAlgorithm)
		byID := strings.HasPrefix(hex, digits) && (len(digits) >= minIDPrefix || digits != ref)
		if !byID && (named == nil || named.String() != image.names[0]) {
			t.Fatalf("resolve %q: found an image that is neither of that name nor of that ID", ref)
		}
	})
}

// FuzzLayer unpacks arbitrary bytes as a layer. It must end, with or without
// an error, and write nothing outside of the layer's directory.
func FuzzLayer(f *testing.F) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, h := range []*tar.Header{
		{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "dir/file", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{xattrRecord + "user.a": "b"}},
		{Name: "dir/link", Typeflag: tar.TypeLink, Linkname: "dir/file"},
		{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "../.."},
		{Name: "out/file", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "dir/.wh.gone", Typeflag: tar.TypeReg}, {Name: "dir/.wh..wh..opq", Typeflag: tar.TypeReg},
	} {
		if err := w.WriteHeader(h); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	var zipped, zstandard bytes.Buffer
	packers := []func() (io.WriteCloser, error){
		func() (io.WriteCloser, error) { return gzip.NewWriter(&zipped), nil },
		func() (io.WriteCloser, error) { return zstd.NewWriter(&zstandard) },
	}
	for _, open := range packers {
		p, err := open()
		if err != nil {
			f.Fatal(err)
		}
		_, err = p.Write(archive.Bytes())
		if err := errors.Join(err, p.Close()); err != nil {
			f.Fatal(err)
		}
	}
	for _, seed := range [][]byte{nil, archive.Bytes(), zipped.Bytes(), zstandard.Bytes(), {0x50, 0x2a, 0x4d, 0x18}, {0x1f, 0x8b}} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	const limit = 1 << 20 // of decompressed input: the fuzzer finds bombs
	f.Fuzz(func(t *testing.T, data []byte, lower bool) {
		outer := t.TempDir()
		inner := outer + "/a/b/c/layer"
		if err := os.MkdirAll(inner, 0o700); err != nil {
			t.Fatal(err)
		}
		archived, err := decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		plain, err := io.ReadAll(io.LimitReader(archived, limit))
		if err := errors.Join(err, archived.Close()); err != nil {
			return
		}
		if _, err := unpackLayer(context.Background(), bytes.NewReader(plain), unpackTarget{dir: inner, lower: lower}, &unpackLimits{max: limit}); err != nil {
			t.Log(err)
		}
		for dir, want := range map[string]string{"": "a", "/a": "b", "/a/b": "c", "/a/b/c": "layer"} {
			entries, err := os.ReadDir(outer + dir)
			if err != nil || len(entries) != 1 || entries[0].Name() != want {
				t.Fatalf("beside the layer there is %v, %v", entries, err)
			}
		}
	})
}

// FuzzNames reads arbitrary bytes as the list of names: what is read can be
// written and read again.
func FuzzNames(f *testing.F) {
	f.Add([]byte(`{"version":1,"images":{"docker.io/library/a:b":{"mediaType":"x","digest":"sha256:00","size":1}}}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"images":null}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := t.TempDir() + "/names.json"
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		had, err := readNames(path)
		if err != nil {
			return
		}
		if err := had.write(path); err != nil {
			t.Fatal(err)
		}
		again, err := readNames(path)
		if err != nil || len(again) != len(had) {
			t.Fatalf("written and read again: got %v, %v, want %v", again, err, had)
		}
	})
}

// The CRI wants a user as a number or as a name.
func TestUserOf(t *testing.T) {
	for user, want := range map[string]struct {
		uid  int64
		name string
	}{
		"": {-1, ""}, "0": {0, ""}, "1002": {1002, ""}, "1003:500": {1003, ""}, "1003:group": {1003, ""},
		"www-data": {-1, "www-data"}, "www-data:www-data": {-1, "www-data"}, "-5": {-1, "-5"},
		"99999999999999999999": {-1, "99999999999999999999"}, ":7": {-1, ""},
	} {
		uid, name := userOf(user)
		if name != want.name || (uid == nil) != (want.uid < 0) || uid != nil && *uid != want.uid {
			t.Errorf("%q: got %v and %q, want %d and %q", user, uid, name, want.uid, want.name)
		}
	}
}

// An index tells IDs that begin alike apart, or says that it cannot.
func TestAmbiguousID(t *testing.T) {
	alike := strings.Repeat("a", 20)
	one := &Image{ID: idAlgorithm + alike + strings.Repeat("1", 44)}
	two := &Image{ID: idAlgorithm + alike + strings.Repeat("2", 44), Config: ocispec.ImageConfig{}}
	index := newIndex([]*Image{one, two})
	for ref, want := range map[string]*Image{alike + "1": one, "sha256:" + alike + "2": two, one.ID: one, two.ID[7:]: two} {
		if got, err := index.resolve(ref); got != want || err != nil {
			t.Errorf("%s: got %v, %v", ref, got, err)
		}
	}
	if _, err := index.resolve(alike); !errdefs.IsInvalidArgument(err) {
		t.Errorf("ambiguous: got %v, want invalid argument", err)
	}
	if _, err := index.resolve(alike + "3"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown digest: got %v, want not found", err)
	}
}
