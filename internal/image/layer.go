package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func layerKey(desc ocispec.Descriptor) string { return "layer " + desc.Digest.String() }

// Apply fetches one layer and unpacks it on the way: what comes from the
// registry is hashed, written to the blob, decompressed, hashed again and
// unpacked in one stream. It returns the digest of the decompressed layer. The
// unpacked files reach the disk when the layer is committed.
func (t *transfer) Apply(
	ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt,
) (unpacked ocispec.Descriptor, err error) {
	defer func() {
		if err != nil {
			t.noteFull(err)
			t.fail(err)
		}
	}()
	// Two images, or one twice, may want the same blob.
	if err := t.work.Lock(ctx, layerKey(desc)); err != nil {
		return unpacked, err
	}
	defer t.work.Unlock(layerKey(desc))
	into, err := unpackDir(mounts)
	if err != nil {
		return unpacked, err
	}
	layer, err := t.stream(ctx, desc, into)
	if err != nil {
		return unpacked, err
	}
	t.mu.Lock()
	t.finished++
	t.unpacked[into.dir] = unpackedLayer{number: t.finished, implied: layer.implied()}
	t.mu.Unlock()
	t.progress.setLayer(desc.Digest.String(), LayerDone, desc.Size)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: layer.digest, Size: layer.size}, nil
}

// stream unpacks a layer from the registry, or from its blob if that is there.
func (t *transfer) stream(ctx context.Context, desc ocispec.Descriptor, into unpackTarget) (*layer, error) {
	d, err := t.download(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		blob, err := t.store.gen.content.ReaderAt(ctx, desc)
		if err != nil {
			return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
		}
		l, err := unpackLayer(ctx, content.NewReader(blob), into, &t.limits)
		if err = errors.Join(err, blob.Close()); err != nil {
			return nil, fmt.Errorf("unpack layer %s: %w", desc.Digest, err)
		}
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	l, err := unpackLayer(ctx, d, into, &t.limits)
	if err == nil {
		return l, d.commit(ctx)
	}
	err = fmt.Errorf("unpack layer %s: %w", desc.Digest, err)
	switch {
	case d.err != nil:
		return nil, errors.Join(d.err, d.abort(ctx))
	case ctx.Err() != nil || isFull(err) || errors.Is(err, errUnpackLimit):
		t.noteFull(err)
		return nil, errors.Join(err, d.abort(ctx))
	}
	// The archive made no sense. If that is because the registry sent something
	// else than it promised, say so.
	if failure := d.commit(ctx); failure != nil {
		return nil, failure
	}
	return nil, err
}

// unpackTarget is a layer's directory.
type unpackTarget struct {
	dir string
	// lower says that there are layers below, so that a whiteout must stay as
	// the overlay file system's own.
	lower bool
}

// unpackDir understands what the unpacker passes: a bind mount of the lowest
// layer's directory, or an overlay with another's as its upper directory.
func unpackDir(mounts []mount.Mount) (unpackTarget, error) {
	if len(mounts) == 1 && mounts[0].Type == "bind" {
		return unpackTarget{dir: mounts[0].Source}, nil
	}
	if len(mounts) == 1 && mounts[0].Type == "overlay" {
		for _, option := range mounts[0].Options {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
				return unpackTarget{dir: dir, lower: true}, nil
			}
		}
	}
	return unpackTarget{}, fmt.Errorf("unpack into %v: not a layer's directory: %w", mounts, errdefs.ErrInternal)
}

// layer is what became of a layer's archive.
type layer struct {
	digest   digest.Digest // of the decompressed archive
	size     int64
	explicit map[string]bool // directories that the archive has
	parents  map[string]bool // directories that must be there for what it has
	entries  int
}

func newLayer() *layer { return &layer{explicit: map[string]bool{}, parents: map[string]bool{}} }

// unpackLayer unpacks a layer, compressed or not, to its end, as far as the limits of its image allow.
func unpackLayer(ctx context.Context, from io.Reader, into unpackTarget, limits *unpackLimits) (*layer, error) {
	archived, err := decompress(from)
	if err != nil {
		return nil, err
	}
	l := newLayer()
	hash := digest.Canonical.Digester()
	counted := io.TeeReader(limits.reader(archived), hash.Hash())
	options := []archive.ApplyOpt{archive.WithFilter(func(entry *tar.Header) (bool, error) { return l.accept(entry, limits) })}
	if into.lower {
		options = append(options, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	}
	l.size, err = archive.Apply(ctx, into.dir, counted, options...)
	if err == nil {
		// What follows the archive's end belongs to the digest too.
		_, err = io.Copy(io.Discard, counted)
	}
	if err = errors.Join(err, archived.Close()); err != nil {
		return nil, &layerError{err: err, dir: into.dir}
	}
	l.digest = hash.Digest()
	return l, nil
}

// layerError names files as the image does: the directory that a layer is
// unpacked into has another number at each attempt, and kubelet counts errors
// with the same text.
type layerError struct {
	err error
	dir string
}

func (e *layerError) Error() string { return strings.ReplaceAll(e.err.Error(), e.dir, "") }
func (e *layerError) Unwrap() error { return e.err }

// xattrRecord begins the name of an extended attribute in an archive.
const xattrRecord = "SCHILY.xattr."

// accept sees each entry before it is unpacked. The overlay file system's own
// attributes are taken out: with them an image could direct it elsewhere. What
// is a regular file to a reader of sparse and contiguous ones is unpacked as one.
func (l *layer) accept(entry *tar.Header, limits *unpackLimits) (bool, error) {
	if err := l.admit(entry, limits); err != nil {
		return false, err
	}
	if entry.Typeflag == tar.TypeGNUSparse || entry.Typeflag == tar.TypeCont {
		entry.Typeflag = tar.TypeReg
	}
	for record := range entry.PAXRecords {
		name := strings.TrimPrefix(record, xattrRecord)
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			delete(entry.PAXRecords, record)
		}
	}
	l.note(entry)
	return true, nil
}

// layerStore is the snapshotter as one transfer uses it.
type layerStore struct {
	snapshots.Snapshotter
	transfer *transfer
}

// Commit makes an unpacked layer part of its chain, once it is on the disk.
// The unpacker commits the layers of an image in their order, the lowest first.
func (s layerStore) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	err := s.commit(ctx, name, key, opts...)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		s.transfer.noteFull(err)
		s.transfer.fail(err)
	}
	return err
}

func (s layerStore) commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return err
		}
	}
	mounts, err := s.Mounts(ctx, key)
	if err != nil {
		return fmt.Errorf("find unpacked layer: %w", err)
	}
	into, err := unpackDir(mounts)
	if err != nil {
		return err
	}
	if err := s.transfer.sync(into.dir); err != nil {
		return fmt.Errorf("sync layer %s: %w", name, err)
	}
	if info.Parent != "" {
		if err := s.transfer.inherit(ctx, into.dir, info.Parent); err != nil {
			return err
		}
	}
	return s.Snapshotter.Commit(ctx, name, key, opts...)
}

// sync has a layer's files written to the disk. One sync of the file system
// covers all layers that were unpacked before it began, so that an image costs
// a few of them and not one for each layer.
func (t *transfer) sync(dir string) error {
	t.mu.Lock()
	layer, known := t.unpacked[dir]
	finished, synced := t.finished, t.synced
	t.mu.Unlock()
	if known && layer.number <= synced {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Syncfs(int(f.Fd())), f.Close()); err != nil {
		return err
	}
	t.mu.Lock()
	t.synced = max(t.synced, finished)
	t.mu.Unlock()
	return nil
}

// Remove forgets a layer that was not committed. The unpacker may do so twice.
func (s layerStore) Remove(ctx context.Context, key string) error {
	if err := s.Snapshotter.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}
