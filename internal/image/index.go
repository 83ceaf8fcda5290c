package image

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one image of the store. It is shared and must not be changed.
type Image struct {
	// ID is the digest of the configuration, "sha256:…", or that of the manifest
	// of an artifact. It is the same whichever registry the image came from.
	ID string
	// ArtifactType is what the maker of an artifact calls its kind; empty for an
	// image. No container can run from an artifact, but it can be a volume.
	ArtifactType string
	// Tags are full references "host/name:tag", Digests "host/name@sha256:…".
	Tags, Digests []string
	// Size is what the image takes in a registry.
	Size uint64
	// Config is what the image says about how to run it.
	Config ocispec.ImageConfig
	// UID or Username is the user that Config names; neither means root.
	UID      *int64
	Username string
	// Pinned asks the kubelet not to collect the image.
	Pinned bool
	// Foreign is the platform of an image that is for another one than this node's; empty if it is for this node
	// or does not say. It runs if the host can run its programs (binfmt_misc).
	Foreign string
	// Annotations are those of the manifest. They are the image's word.
	Annotations map[string]string

	names  []string // all of Tags and Digests
	chain  string
	layers []string
}

// index is what Resolve and List read. It never changes; each change of the
// names publishes a new one.
type index struct {
	sorted []*Image          // by ID
	byID   map[string]*Image // full ID
	byName map[string]*Image // full reference
}

func newIndex(sorted []*Image) *index {
	i := &index{sorted: sorted, byID: map[string]*Image{}, byName: map[string]*Image{}}
	for _, image := range sorted {
		i.byID[image.ID] = image
		for _, name := range image.names {
			i.byName[name] = image
		}
	}
	return i
}

// publish makes a new index from the names. The caller holds s.mu.
func (s *Store) publish() {
	byID := map[string]*Image{}
	for _, name := range slices.Sorted(maps.Keys(s.names)) {
		from := s.loaded[s.names[name].Digest.String()]
		image := byID[from.id]
		if image == nil {
			image = &Image{
				ID: from.id, Size: from.size, Config: from.config, Annotations: from.annotations,
				ArtifactType: from.artifact, chain: from.chain, layers: from.layers, Foreign: from.foreign,
			}
			image.UID, image.Username = userOf(from.config.User)
			byID[from.id] = image
		}
		if from.foreign == "" {
			image.Foreign = "" // an index that names this node's platform for it counts
		}
		image.names = append(image.names, name)
		image.Pinned = image.Pinned || s.pinned.match(name)
		if strings.Contains(name, "@") {
			image.Digests = append(image.Digests, name)
		} else {
			image.Tags = append(image.Tags, name)
		}
	}
	s.index.Store(newIndex(slices.SortedFunc(maps.Values(byID), func(a, b *Image) int { return cmp.Compare(a.ID, b.ID) })))
}

// List returns every image, ordered by ID.
func (s *Store) List() []*Image { return slices.Clone(s.index.Load().sorted) }

// Resolve finds an image by ID, with or without "sha256:", by reference with
// tag, digest or neither (latest), by short name, or by a beginning of its ID
// that only it has. The error is ErrNotFound if there is none and
// ErrInvalidArgument if ref cannot name an image.
func (s *Store) Resolve(ref string) (*Image, error) { return s.index.Load().resolve(ref) }

func (i *index) resolve(ref string) (*Image, error) {
	prefix, mayBeID := idPrefix(ref)
	if image := i.byID[prefix]; image != nil {
		return image, nil
	}
	named, err := parseReference(ref)
	if err == nil {
		if image := i.byName[named.String()]; image != nil {
			return image, nil
		}
	}
	if mayBeID {
		return i.byPrefix(ref, prefix)
	}
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
}

func (i *index) byPrefix(ref, prefix string) (*Image, error) {
	at, _ := slices.BinarySearchFunc(i.sorted, prefix, func(image *Image, prefix string) int {
		return cmp.Compare(image.ID, prefix)
	})
	if at == len(i.sorted) || !strings.HasPrefix(i.sorted[at].ID, prefix) {
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	if at+1 < len(i.sorted) && strings.HasPrefix(i.sorted[at+1].ID, prefix) {
		return nil, fmt.Errorf("image %q: several image IDs begin so: %w", ref, errdefs.ErrInvalidArgument)
	}
	return i.sorted[at], nil
}
