package image

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"strings"
	"sync/atomic"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxLayerEntries bounds the entries of one layer, and the directories that they imply: both are in
	// memory while the layer is unpacked.
	maxLayerEntries = 1_000_000
	// maxEntryDepth bounds the directories above an entry.
	maxEntryDepth = 255
	// maxEntryPath bounds the name of an entry and the target of its link. It is PATH_MAX of Linux.
	maxEntryPath = 4096
	// maxEntryXattrs bounds the extended attributes of an entry.
	maxEntryXattrs = 256
)

// errUnpackLimit is the kind of an image that is larger than allowed once it is unpacked.
var errUnpackLimit = fmt.Errorf("the image is refused: %w", errdefs.ErrFailedPrecondition)

// unpackLimits bound what the layers of one image or artifact unpack to, however small they are in the registry, and
// what the volumes of an image copy. Its methods may be called from several goroutines.
type unpackLimits struct {
	// max is in bytes; 0 is no limit.
	max int64
	// archives is the size of the decompressed archives so far, files that of the files in them. A sparse file
	// is small in its archive and counts with its whole size, which is what unpacking writes.
	archives, files atomic.Int64
}

func (u *unpackLimits) add(total *atomic.Int64, n int64) error {
	sum := total.Add(n)
	if u.max > 0 && (n < 0 || n > u.max || sum > u.max) {
		return fmt.Errorf("unpacked size reached %d bytes, above image.max_unpacked_size of %d bytes: %w", sum, u.max, errUnpackLimit)
	}
	return nil
}

// admitBlobs refuses layers that are larger in the registry than all of them may be once they are unpacked.
func (u *unpackLimits) admitBlobs(layers []ocispec.Descriptor) error {
	var total atomic.Int64
	for _, layer := range layers {
		if err := u.add(&total, layer.Size); err != nil {
			return fmt.Errorf("layer %s of %d bytes: %w", layer.Digest, layer.Size, err)
		}
	}
	return nil
}

// reader returns an error instead of decompressed bytes above the limit.
func (u *unpackLimits) reader(archive io.Reader) io.Reader { return &limitedArchive{archive, u} }

type limitedArchive struct {
	io.Reader
	limits *unpackLimits
}

func (l *limitedArchive) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if over := l.limits.add(&l.limits.archives, int64(n)); over != nil {
		return 0, over
	}
	return n, err
}

// admit refuses an entry that no file system could hold, or that makes the layer too large.
func (l *layer) admit(entry *tar.Header, limits *unpackLimits) error {
	l.entries++
	name := path.Clean("/" + entry.Name)
	xattrs := 0
	for record := range entry.PAXRecords {
		if strings.HasPrefix(record, xattrRecord) {
			xattrs++
		}
	}
	for _, limit := range []struct {
		field     string
		got, most int
	}{
		{"number of entries", max(l.entries, len(l.parents)), maxLayerEntries},
		{"length of an entry's name", len(entry.Name), maxEntryPath},
		{"length of a link's target", len(entry.Linkname), maxEntryPath},
		{"depth of an entry", strings.Count(name, "/"), maxEntryDepth},
		{"number of an entry's extended attributes", xattrs, maxEntryXattrs},
	} {
		if limit.got > limit.most {
			return fmt.Errorf("%s is %d, at most %d are allowed: %w", limit.field, limit.got, limit.most, errUnpackLimit)
		}
	}
	return limits.add(&limits.files, entry.Size)
}
