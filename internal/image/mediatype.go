package image

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// contentType is the media type of an answer without its parameters.
func contentType(answer *http.Response) string {
	kind, _, _ := strings.Cut(answer.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(kind)
}

func isManifestType(kind string) bool {
	return images.IsManifestType(kind) || images.IsIndexType(kind) || kind == images.MediaTypeDockerSchema1Manifest
}

// manifestType finds the media type of a manifest whose registry does not say it.
func manifestType(data []byte) (string, error) {
	var manifest struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return "", fmt.Errorf("registry sent no manifest: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	switch {
	case isManifestType(manifest.MediaType):
		return manifest.MediaType, nil
	case manifest.SchemaVersion == 1:
		return images.MediaTypeDockerSchema1Manifest, nil
	case manifest.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case manifest.Config != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fmt.Errorf("registry sent no manifest: neither mediaType nor its fields are those of one: %w", errdefs.ErrFailedPrecondition)
}
