package imagefactory

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bundle describes files in a registry that are no image, as ORAS makes them.
type Bundle struct {
	// Type is the manifest's artifactType.
	Type  string
	Blobs []Blob
	// Config is the configuration, of type ConfigType; without it that is the
	// empty one.
	Config     []byte
	ConfigType string
	// Annotations are set on the manifest.
	Annotations map[string]string
}

// Blob is one layer of a bundle: some bytes, or the archive of an image's
// layer.
type Blob struct {
	MediaType string
	Content   []byte
	// Archive takes the place of MediaType and Content.
	Archive *Layer
	// Title is the name of the file.
	Title string
	// Annotations are further ones.
	Annotations map[string]string
}

// BuildBundle makes what the description says. Its ID is the digest of the
// manifest.
func BuildBundle(b Bundle) (*Artifact, error) {
	a := &Artifact{}
	config := newBlob(b.ConfigType, b.Config)
	if b.Config == nil {
		config = newBlob(ocispec.MediaTypeEmptyJSON, []byte("{}"))
	}
	a.blobs = append(a.blobs, config)
	for i, described := range b.Blobs {
		layer := newBlob(described.MediaType, described.Content)
		if described.Archive != nil {
			built, err := described.Archive.build(false)
			if err != nil {
				return nil, fmt.Errorf("build layer %d: %w", i, err)
			}
			layer = built.blob
		}
		layer.Annotations = map[string]string{}
		maps.Copy(layer.Annotations, described.Annotations)
		if described.Title != "" {
			layer.Annotations[ocispec.AnnotationTitle] = described.Title
		}
		a.Layers = append(a.Layers, layer.Descriptor)
		a.blobs = append(a.blobs, layer)
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: b.Type,
		Config: config.Descriptor, Layers: a.Layers, Annotations: b.Annotations,
	})
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	a.root = newBlob(ocispec.MediaTypeImageManifest, manifest)
	a.Descriptor = a.root.Descriptor
	a.ID = a.Descriptor.Digest.String()
	return a, nil
}
