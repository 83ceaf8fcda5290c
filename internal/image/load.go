package image

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// loaded is what one manifest or index gives on this platform. It never
// changes.
type loaded struct {
	id          string
	size        uint64
	config      ocispec.ImageConfig
	annotations map[string]string
	blobs       []string // digests of all that belongs to it
	chain       string   // name of the topmost layer's snapshot; empty without layers
	layers      []string // directories of the unpacked layers, topmost first
	artifact    string   // type of an artifact; empty for an image
	foreign     string   // see Image.Foreign
}

// load reads an image that is in the store. It succeeds only if the image is
// usable: every blob has its size and every layer its snapshot.
func (s *Store) load(ctx context.Context, target ocispec.Descriptor) (*loaded, error) {
	found, err := s.manifestOf(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", target.Digest, err)
	}
	desc, manifest := found.desc, found.manifest
	for _, blob := range append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...) {
		info, err := s.gen.backend.Info(ctx, blob.Digest)
		if err != nil {
			return nil, fmt.Errorf("find blob %s: %w", blob.Digest, err)
		}
		if info.Size != blob.Size {
			return nil, fmt.Errorf("blob %s has %d bytes instead of %d: %w", blob.Digest, info.Size, blob.Size, errdefs.ErrDataLoss)
		}
		if _, err := s.gen.content.Info(ctx, blob.Digest); err != nil {
			return nil, fmt.Errorf("find blob %s: %w", blob.Digest, err)
		}
	}
	annotations, left := boundedAnnotations(manifest.Annotations)
	if left > 0 {
		s.log.Warn("image annotations left out", "manifest", desc.Digest, "left_out", left, "kept", len(annotations), "limit_bytes", maxAnnotationBytes)
	}
	image := &loaded{
		annotations: annotations, size: uint64(manifest.Config.Size),
		blobs: []string{target.Digest.String(), manifest.Config.Digest.String()},
	}
	for _, layer := range manifest.Layers {
		image.size += uint64(layer.Size)
		image.blobs = append(image.blobs, layer.Digest.String())
	}
	if isArtifact(manifest.Config) {
		return image, s.loadArtifact(image, desc, manifest)
	}
	return image, s.loadLayers(ctx, image, found)
}

// loadArtifact finds the files of an artifact. Many have the same, empty
// configuration, so that the manifest's digest is the ID.
func (s *Store) loadArtifact(image *loaded, desc ocispec.Descriptor, manifest ocispec.Manifest) error {
	tree := s.gen.treeDir(desc.Digest)
	if _, err := os.Stat(tree); err != nil {
		return fmt.Errorf("find the files of artifact %s: %w: %w", desc.Digest, err, errdefs.ErrNotFound)
	}
	image.id, image.artifact = desc.Digest.String(), artifactType(manifest)
	image.chain, image.layers = chainOfArtifact(desc.Digest), []string{tree}
	image.blobs = append(image.blobs, desc.Digest.String())
	return nil
}

// loadLayers finds the unpacked layers of an image.
func (s *Store) loadLayers(ctx context.Context, image *loaded, found chosen) error {
	manifest := found.manifest
	config, err := readConfig(ctx, s.gen.content, manifest.Config)
	if err != nil {
		return err
	}
	if len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		return fmt.Errorf("image has %d layers but its configuration names %d: %w",
			len(manifest.Layers), len(config.RootFS.DiffIDs), errdefs.ErrInvalidArgument)
	}
	image.id, image.config, image.chain = manifest.Config.Digest.String(), config.Config, chainOf(config.RootFS.DiffIDs)
	image.foreign = s.foreign(found, config.Platform)
	if image.layers, err = s.gen.layerDirs(ctx, image.chain); err != nil {
		return err
	}
	if len(image.layers) != len(manifest.Layers) {
		return fmt.Errorf("image has %d layers but %d are unpacked: %w",
			len(manifest.Layers), len(image.layers), errdefs.ErrNotFound)
	}
	return nil
}

func chainOf(diffIDs []digest.Digest) string {
	if len(diffIDs) == 0 {
		return ""
	}
	return identity.ChainID(diffIDs).String()
}

func readConfig(ctx context.Context, from content.Provider, desc ocispec.Descriptor) (ocispec.Image, error) {
	var config ocispec.Image
	data, err := content.ReadBlob(ctx, from, desc)
	if err != nil {
		return config, fmt.Errorf("read image configuration %s: %w", desc.Digest, err)
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return config, fmt.Errorf("read image configuration %s: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	return config, nil
}

// userOf splits a configuration's User, "name", "uid", "name:group" or
// "uid:gid", as the CRI wants it: a number or a name, not both.
func userOf(user string) (uid *int64, name string) {
	user, _, _ = strings.Cut(user, ":")
	if number, err := strconv.ParseInt(user, 10, 64); err == nil && number >= 0 {
		return &number, ""
	}
	return nil, user
}
