package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/pkg/imageverifier/bindir"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// verifierNanoseconds is how long one verifier may think: 10 s.
const verifierNanoseconds = 10_000_000_000

// RefusedError says that a verifier of Options.VerifierDir does not want an
// image on this node, or that none could be asked.
type RefusedError struct {
	// Reason is what the verifier said.
	Reason string
}

// Error returns the reason.
func (e *RefusedError) Error() string { return e.Reason }

// Unwrap gives the error its kind.
func (e *RefusedError) Unwrap() error { return errdefs.ErrPermissionDenied }

// askVerifiers asks the programs of the administrator, which run as they would
// for containerd, whether an image may be pulled. A configured directory
// that is missing refuses the pull: no verifier has agreed.
func (s *Store) askVerifiers(ctx context.Context, ref string, target ocispec.Descriptor) error {
	dir := s.opts.VerifierDir
	if dir == "" {
		return nil
	}
	if _, err := os.Stat(dir); err != nil {
		return &RefusedError{fmt.Sprintf("find image verifiers: %v", err)}
	}
	verifiers := bindir.NewImageVerifier(&bindir.Config{
		BinDir: dir, MaxVerifiers: -1, PerVerifierTimeout: verifierNanoseconds,
	})
	judgement, err := verifiers.VerifyImage(ctx, ref, target)
	switch {
	case err != nil && context.Cause(ctx) != nil:
		return errors.Join(err, context.Cause(ctx))
	case err != nil:
		return &RefusedError{fmt.Sprintf("ask image verifiers: %v", err)}
	case !judgement.OK:
		return &RefusedError{judgement.Reason}
	}
	s.log.Info("image verified", "image", ref, "digest", target.Digest, "reason", judgement.Reason)
	return nil
}
