package imagefactory

import (
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of the older format that many registries still serve.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// Spec describes an image for one platform.
type Spec struct {
	Layers []Layer
	Config ocispec.ImageConfig
	// Platform is the platform of this machine if it is left empty.
	Platform ocispec.Platform
	// NoPlatform leaves the platform out of the configuration.
	NoPlatform bool
	// Docker chooses the media types of Docker's schema 2 instead of OCI's.
	Docker bool
	// Annotations are set on the manifest.
	Annotations map[string]string
}

// blob is some bytes with the descriptor that names them.
type blob struct {
	ocispec.Descriptor
	data []byte
}

func newBlob(mediaType string, data []byte) blob {
	return blob{
		Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		data:       data,
	}
}

// Artifact is something that can be pushed: an image, or an index of images.
type Artifact struct {
	// Descriptor names the manifest or the index.
	Descriptor ocispec.Descriptor
	// ID is the digest of the configuration; empty for an index.
	ID string
	// Layers are the descriptors of an image's layers, lowest first.
	Layers []ocispec.Descriptor

	docker   bool
	platform ocispec.Platform
	root     blob
	blobs    []blob      // configuration and layers
	children []*Artifact // the images of an index
}

// Build makes the image that the description says.
func Build(spec Spec) (*Artifact, error) {
	if spec.Platform.Architecture == "" && !spec.NoPlatform {
		spec.Platform = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	a := &Artifact{docker: spec.Docker, platform: spec.Platform}
	created := Epoch
	config := ocispec.Image{
		Created: &created, Platform: spec.Platform, Config: spec.Config,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	for i, l := range spec.Layers {
		built, err := l.build(spec.Docker)
		if err != nil {
			return nil, fmt.Errorf("build layer %d: %w", i, err)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, built.diffID)
		config.History = append(config.History, ocispec.History{Created: &created, CreatedBy: fmt.Sprintf("layer %d", i)})
		a.Layers = append(a.Layers, built.Descriptor)
		a.blobs = append(a.blobs, built.blob)
	}
	configType, manifestType := ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageManifest
	if spec.Docker {
		configType, manifestType = dockerConfig, dockerManifest
	}
	data, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode image configuration: %w", err)
	}
	configBlob := newBlob(configType, data)
	a.ID = configBlob.Digest.String()
	a.blobs = append(a.blobs, configBlob)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType,
		Config: configBlob.Descriptor, Layers: slices.Clone(a.Layers), Annotations: maps.Clone(spec.Annotations),
	})
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	a.root = newBlob(manifestType, manifest)
	a.Descriptor = a.root.Descriptor
	return a, nil
}

// Index makes a multi-platform index of images, in the order given.
func Index(images ...*Artifact) (*Artifact, error) {
	entries := make([]Entry, len(images))
	for i, image := range images {
		entries[i] = Entry{Artifact: image, Platform: &image.platform}
	}
	return IndexOf(entries...)
}

// Entry is one entry of an index.
type Entry struct {
	*Artifact
	// Platform is that in the index, independent of the image; nil leaves it out.
	Platform    *ocispec.Platform
	Annotations map[string]string
}

// IndexOf makes an index of images and indexes, in the order given.
func IndexOf(entries ...Entry) (*Artifact, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	a := &Artifact{}
	for _, entry := range entries {
		if entry.docker {
			index.MediaType = dockerList
		}
		d := entry.Descriptor
		d.Platform, d.Annotations = entry.Platform, entry.Annotations
		index.Manifests = append(index.Manifests, d)
		a.children = append(a.children, entry.Artifact)
	}
	data, err := json.Marshal(index)
	if err != nil {
		return nil, fmt.Errorf("encode index: %w", err)
	}
	a.root = newBlob(index.MediaType, data)
	a.Descriptor = a.root.Descriptor
	return a, nil
}

// WithDecoys puts an image into an index between images of other platforms,
// whose only file would give a wrong choice away.
func WithDecoys(image *Artifact) (*Artifact, error) {
	var images []*Artifact
	for _, platform := range []ocispec.Platform{
		{OS: "linux", Architecture: "s390x"},
		{OS: "linux", Architecture: "arm", Variant: "v7"},
		{OS: "windows", Architecture: runtime.GOARCH, OSVersion: "10.0.17763.1"},
	} {
		decoy, err := Build(Spec{
			Platform: platform, Docker: image.docker,
			Layers: []Layer{{Files: []File{Regular("decoy", platform.OS+"/"+platform.Architecture)}}},
		})
		if err != nil {
			return nil, err
		}
		images = append(images, decoy)
	}
	return Index(slices.Insert(images, 1, image)...)
}
