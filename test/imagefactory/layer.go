// Package imagefactory builds container images from descriptions, in pure Go
// and reproducibly, and pushes them to a registry. Tests and the demo pull
// them.
package imagefactory

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression is how a layer's tar is packed.
type Compression int

// The compressions that registries serve.
const (
	Gzip Compression = iota
	Zstd
	Uncompressed
)

// Epoch is the time of every file and image that does not name its own, so
// that the same description always has the same digests.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// File is one entry of a layer.
type File struct {
	// Path is relative to the image's root.
	Path string
	// Kind is a tar type flag; 0 is a regular file.
	Kind byte
	// Mode holds the permission bits with fs.ModeSetuid, fs.ModeSetgid and
	// fs.ModeSticky. 0 means 0755 for directories and 0644 for the rest.
	Mode     fs.FileMode
	UID, GID int
	Content  []byte
	// Target is where a symbolic or hard link points.
	Target string
	// Xattrs are extended attributes, names with their namespace.
	Xattrs map[string]string
	// Major and Minor number a device.
	Major, Minor int64
	ModTime      time.Time
}

// Regular describes a file with mode 0644.
func Regular(path, content string) File { return File{Path: path, Content: []byte(content)} }

// Program describes an executable file.
func Program(path string, content []byte) File {
	return File{Path: path, Content: content, Mode: 0o755}
}

// Dir describes a directory with mode 0755.
func Dir(path string) File { return File{Path: path, Kind: tar.TypeDir} }

// Symlink describes a symbolic link.
func Symlink(path, target string) File {
	return File{Path: path, Kind: tar.TypeSymlink, Target: target}
}

// Hardlink describes a second name of a file that comes earlier.
func Hardlink(path, target string) File {
	return File{Path: path, Kind: tar.TypeLink, Target: target}
}

// Whiteout removes a path of the layers below.
func Whiteout(name string) File {
	dir, base := path.Split(name)
	return File{Path: dir + ".wh." + base}
}

// Opaque hides everything that the layers below have in a directory.
func Opaque(dir string) File { return File{Path: path.Join(dir, ".wh..wh..opq")} }

// Layer describes one layer of an image.
type Layer struct {
	Files       []File
	Compression Compression
	// Tar replaces Files with the bytes of an archive, well formed or not.
	Tar []byte
}

// builtLayer is a packed layer with the digest of what is inside.
type builtLayer struct {
	blob
	diffID digest.Digest
}

func (l Layer) build(docker bool) (builtLayer, error) {
	raw := l.Tar
	if raw == nil {
		var err error
		if raw, err = archive(l.Files); err != nil {
			return builtLayer{}, err
		}
	}
	packed, err := l.Compression.pack(raw)
	if err != nil {
		return builtLayer{}, fmt.Errorf("compress layer: %w", err)
	}
	return builtLayer{blob: newBlob(l.Compression.mediaType(docker), packed), diffID: digest.FromBytes(raw)}, nil
}

func (c Compression) mediaType(docker bool) string {
	switch {
	case docker && c == Gzip:
		return "application/vnd.docker.image.rootfs.diff.tar.gzip"
	case docker && c == Uncompressed:
		return "application/vnd.docker.image.rootfs.diff.tar"
	case c == Zstd:
		return ocispec.MediaTypeImageLayerZstd
	case c == Uncompressed:
		return ocispec.MediaTypeImageLayer
	default:
		return ocispec.MediaTypeImageLayerGzip
	}
}

func (c Compression) pack(raw []byte) ([]byte, error) {
	var b bytes.Buffer
	var w io.WriteCloser
	switch c {
	case Uncompressed:
		return raw, nil
	case Zstd:
		encoder, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		w = encoder
	default:
		encoder, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		if err != nil {
			return nil, err
		}
		w = encoder
	}
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// archive writes the files as a PAX tar in the order given.
func archive(files []File) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	named := map[string]File{}
	for _, f := range files {
		// Every name of a file says the same about it: the last one is believed.
		if target, ok := named[f.Target]; ok && f.Kind == tar.TypeLink {
			f.Mode, f.UID, f.GID, f.Xattrs, f.ModTime = target.Mode, target.UID, target.GID, target.Xattrs, target.ModTime
		}
		named[f.Path] = f
		h := f.header()
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("describe %s: %w", f.Path, err)
		}
		if _, err := w.Write(f.Content); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("finish layer: %w", err)
	}
	return b.Bytes(), nil
}

func (f File) header() *tar.Header {
	h := &tar.Header{
		Typeflag: f.Kind, Name: strings.TrimPrefix(f.Path, "/"), Linkname: f.Target, Size: int64(len(f.Content)),
		Uid: f.UID, Gid: f.GID, Devmajor: f.Major, Devminor: f.Minor, ModTime: f.ModTime, Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Typeflag == tar.TypeDir {
		h.Name = strings.TrimSuffix(h.Name, "/") + "/"
	}
	if h.ModTime.IsZero() {
		h.ModTime = Epoch
	}
	h.Mode = int64(f.Mode.Perm())
	switch {
	case f.Mode != 0:
	case h.Typeflag == tar.TypeDir, h.Typeflag == tar.TypeSymlink:
		h.Mode = 0o755
	default:
		h.Mode = 0o644
	}
	for bit, octal := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if f.Mode&bit != 0 {
			h.Mode |= octal
		}
	}
	for name, value := range f.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	return h
}
