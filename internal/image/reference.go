package image

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

const (
	// maxReference bounds what a client may send as a reference.
	maxReference = 1024
	// minIDPrefix is the shortest beginning of an ID that is taken for one. A
	// name like "cafe" must never be answered with an image whose ID
	// happens to begin so: the kubelet would run it instead of pulling. With
	// "sha256:" in front any length will do.
	minIDPrefix = 12
	idAlgorithm = "sha256:"
	idHexLength = 64
)

var hexadecimal = regexp.MustCompile(`^[0-9a-f]+$`)

// parseReference gives a reference its full form, as Docker does: docker.io and
// library are added, latest if there is neither tag nor digest, and a digest
// wins over a tag beside it.
func parseReference(ref string) (reference.Named, error) {
	switch {
	case ref == "":
		return nil, fmt.Errorf("image reference is empty: %w", errdefs.ErrInvalidArgument)
	case len(ref) > maxReference:
		return nil, fmt.Errorf("image reference is longer than %d bytes: %w", maxReference, errdefs.ErrInvalidArgument)
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	return named, nil
}

// idPrefix says whether a string can be an image ID or the beginning of one,
// and returns it in full form.
func idPrefix(ref string) (prefix string, ok bool) {
	digits, explicit := strings.CutPrefix(ref, idAlgorithm)
	if !hexadecimal.MatchString(digits) || len(digits) > idHexLength {
		return "", false
	}
	if !explicit && len(digits) < minIDPrefix {
		return "", false
	}
	return idAlgorithm + digits, true
}
