package image

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	// maxLayers is far from the kernel's 500, and more than anybody builds.
	maxLayers = 256
	// tidyTimeout bounds the clean-up after a pull. It does not end with the
	// pull's own context: that may have ended already.
	tidyTimeout = 2 * time.Minute
	// maxNested bounds the indexes and manifests on the way to an image: one index and one manifest
	// are usual.
	maxNested = 16
	// maxManifests bounds what one index lists.
	maxManifests = 4096
)

// transfer brings one image from a fetcher into the store. All that it makes
// is held by a lease until the names refer to it, so that a collection at the
// same time leaves it alone, and the one after a failure takes all of it.
type transfer struct {
	source
	store *Store
	id    string // of its lease
	slots *pullSlots
	fail  context.CancelCauseFunc // ends the whole transfer at the first error

	limits   unpackLimits
	mu       sync.Mutex
	indexes  int // how many indexes and manifests were fetched
	layers   []ocispec.Descriptor
	artifact *ocispec.Descriptor      // the manifest, if it is that of an artifact
	unpacked map[string]unpackedLayer // by directory
	finished int                      // how many layers are unpacked
	synced   int                      // how many of those are on the disk
}

// source is where an image comes from.
type source struct {
	target   ocispec.Descriptor
	fetcher  remotes.Fetcher
	work     *pullWork
	progress *progress
}

// unpackedLayer is a layer that is unpacked and not yet committed.
type unpackedLayer struct {
	number  int      // 1 for the first one that was finished
	implied []string // see inherit
}

// transfer fetches and unpacks an image and gives it the names.
func (s *Store) transfer(ctx context.Context, from source, as []string) (image *loaded, err error) {
	tidy, stop := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
	defer stop()
	lease, err := s.gen.leases.Create(tidy, leases.WithRandomID())
	if err != nil {
		return nil, fmt.Errorf("begin transfer: %w", err)
	}
	defer func() { err = s.tidy(context.WithoutCancel(ctx), lease, err) }()
	ctx, fail := context.WithCancelCause(leases.WithLease(ctx, lease.ID))
	defer fail(nil)
	t := &transfer{
		source: from, store: s, id: lease.ID, slots: s.slots.forPull(from.work.host), fail: fail,
		limits: unpackLimits{max: s.opts.MaxUnpackedSize}, unpacked: map[string]unpackedLayer{},
	}
	if err := t.run(ctx, from.target); err != nil {
		return nil, err
	}
	from.progress.setStage(StageStoring)
	if t.artifact != nil {
		s.growing.begin(treeName(t.artifact.Digest))
		defer s.growing.end(treeName(t.artifact.Digest))
		if err := s.growTree(ctx, *t.artifact, false); err != nil {
			return nil, err
		}
	}
	return s.adopt(context.WithoutCancel(ctx), from.target, as)
}

// tidy ends a transfer. After a failure it removes whatever the transfer made.
func (s *Store) tidy(ctx context.Context, lease leases.Lease, failure error) error {
	ctx, cancel := context.WithTimeout(ctx, tidyTimeout)
	defer cancel()
	if isFull(failure) {
		s.reserve.release()
	}
	err := s.reserve.room(func() error { return s.gen.leases.Delete(ctx, lease) })
	if failure == nil {
		if err != nil {
			// The next start of the store deletes it.
			s.log.Warn("cannot delete the lease of a pull", "lease", lease.ID, "error", err)
		}
		return nil
	}
	if err == nil {
		err = s.GC(ctx)
	}
	if err != nil {
		return errors.Join(failure, fmt.Errorf("clean up after the pull: %w", err))
	}
	return failure
}

// run fetches and unpacks. Its error is the first one that occurred, not one
// of those that follow from it.
func (t *transfer) run(ctx context.Context, target ocispec.Descriptor) error {
	unpacker, err := unpack.NewUnpacker(ctx, t.store.gen.content,
		unpack.WithUnpackPlatform(unpack.Platform{
			Platform: platforms.All, SnapshotterKey: snapshotterName,
			Snapshotter:             layerStore{Snapshotter: t.store.gen.layers, transfer: t},
			SnapshotterCapabilities: []string{snapshots.RebaseCap}, // layers in parallel
			Applier:                 t,
		}),
		unpack.WithUnpackLimiter(t.slots),
		unpack.WithDuplicationSuppressor(t.work))
	if err != nil {
		return fmt.Errorf("prepare to unpack: %w", err)
	}
	if err := images.Dispatch(ctx, unpacker.Unpack(t.handler()), nil, target); err != nil {
		t.fail(err)
	}
	if _, err := unpacker.Wait(); err != nil {
		t.fail(err)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return t.complete(ctx)
}

// handler fetches manifests and the configuration. Layers are fetched while
// they are unpacked, see Apply.
func (t *transfer) handler() images.Handler {
	children := images.SetChildrenMappedLabels(t.store.gen.content, t.children, nil)
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		switch {
		case images.IsLayerType(desc.MediaType):
			return nil, nil
		case images.IsIndexType(desc.MediaType), images.IsManifestType(desc.MediaType):
			if err := t.enter(); err != nil {
				return nil, err
			}
			if err := t.fetchSmall(ctx, desc, maxManifest); err != nil {
				return nil, err
			}
			found, err := children(ctx, desc)
			if t.isArtifact(desc) {
				return nil, err // complete fetches what belongs to it, as it is
			}
			return found, err
		case images.IsConfigType(desc.MediaType):
			if err := t.fetchSmall(ctx, desc, maxConfig); err != nil {
				return nil, err
			}
			_, err := readConfig(ctx, t.store.gen.content, desc)
			return nil, err
		default:
			return nil, fmt.Errorf("media type %q is not that of an image: %w", desc.MediaType, errdefs.ErrInvalidArgument)
		}
	})
}

// enter counts the indexes and manifests of an image.
func (t *transfer) enter() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.indexes++; t.indexes > maxNested {
		return fmt.Errorf("image has more than %d nested indexes: %w", maxNested, errdefs.ErrInvalidArgument)
	}
	return nil
}

// fetchSmall fetches a blob that is read into memory later.
func (t *transfer) fetchSmall(ctx context.Context, desc ocispec.Descriptor, limit int64) error {
	if desc.Size < 0 || desc.Size > limit {
		return fmt.Errorf("%s %s: size %d is not between 0 and %d: %w",
			desc.MediaType, desc.Digest, desc.Size, limit, errdefs.ErrInvalidArgument)
	}
	return t.fetchBlob(ctx, desc)
}

// children lists what a manifest refers to, or what of an index is for this node. Of what a manifest says
// about its layers only type, digest and size are kept: annotations would
// become labels of snapshots, and URLs would make the node fetch from hosts
// that the image chooses.
func (t *transfer) children(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	found, err := images.Children(ctx, t.store.gen.content, desc)
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w: %w", desc.MediaType, desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	if images.IsIndexType(desc.MediaType) && len(found) > maxManifests {
		return nil, fmt.Errorf("index %s lists %d manifests, more than %d: %w",
			desc.Digest, len(found), maxManifests, errdefs.ErrInvalidArgument)
	}
	if images.IsIndexType(desc.MediaType) {
		candidates := t.store.candidates(found)
		if len(candidates) == 0 {
			return nil, t.store.noCandidate(found)
		}
		found = candidates[:1]
	}
	for i, child := range found {
		if err := child.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("%s names the digest %q: %w: %w", desc.Digest, child.Digest, err, errdefs.ErrInvalidArgument)
		}
		found[i] = ocispec.Descriptor{
			MediaType: child.MediaType, Digest: child.Digest, Size: child.Size, Platform: child.Platform,
		}
	}
	if images.IsManifestType(desc.MediaType) && len(found) > 0 {
		layers := found[1:] // images.Children gives the configuration first
		if len(layers) > maxLayers {
			return nil, fmt.Errorf("image has %d layers, more than %d: %w", len(layers), maxLayers, errdefs.ErrInvalidArgument)
		}
		if err := t.limits.admitBlobs(layers); err != nil {
			return nil, err
		}
		t.mu.Lock()
		t.layers = layers
		if isArtifact(found[0]) {
			t.artifact, t.layers = &desc, found
		}
		t.mu.Unlock()
		t.progress.setLayers(layers)
	}
	return found, nil
}

func (t *transfer) isArtifact(desc ocispec.Descriptor) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.artifact != nil && t.artifact.Digest == desc.Digest
}

// complete fetches the blobs of layers that did not have to be unpacked,
// because another image with the same layer, packed otherwise, is there, or
// because they belong to an artifact.
func (t *transfer) complete(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, layer := range t.layers {
		group.Go(func() error {
			if err := t.slots.Acquire(ctx, 1); err != nil {
				return err
			}
			defer t.slots.Release(1)
			key := layerKey(layer)
			if err := t.work.Lock(ctx, key); err != nil {
				return err
			}
			defer t.work.Unlock(key)
			return t.fetchBlob(ctx, layer)
		})
	}
	return group.Wait()
}
