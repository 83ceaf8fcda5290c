package image

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// Remove removes the image that ref resolves to, with all its names. When it
// returns nil the image is not found any more; its bytes are freed soon after,
// except those which containers still run from. If there is no such image the
// error is ErrNotFound.
func (s *Store) Remove(ctx context.Context, ref string) error {
	ctx = withLog(inNamespace(ctx), s.log)
	s.mu.Lock()
	defer s.mu.Unlock()
	image, err := s.Resolve(ref)
	if err != nil {
		return err
	}
	before, changed := s.names, s.names.clone()
	for _, name := range image.names {
		delete(changed, name)
	}
	// From here on no container can begin to use it, so the uses seen below are
	// all that there will be.
	s.names = changed
	s.publish()
	s.names = before
	err = s.reserve.room(func() error {
		if err := s.keepUsed(ctx, image.chain); err != nil {
			return err
		}
		return s.rename(ctx, changed)
	})
	if err != nil {
		s.publish()
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	s.names = changed
	s.forgetUnnamed()
	s.kickCollector()
	s.log.Info("image removed", "image", ref, "id", image.ID)
	return nil
}

// forgetUnnamed drops what was loaded for names that are gone. The caller
// holds s.mu.
func (s *Store) forgetUnnamed() {
	named := map[string]bool{}
	for _, target := range s.names {
		named[target.Digest.String()] = true
	}
	for digest := range s.loaded {
		if !named[digest] {
			delete(s.loaded, digest)
		}
	}
}

// keepUsed keeps the layers of a chain if containers use them.
func (s *Store) keepUsed(ctx context.Context, chain string) error {
	if chain == "" || strings.HasPrefix(chain, artifactChain) || !s.uses.held(chain) {
		return nil // an artifact's tree needs no lease, see sweepArtifacts
	}
	lease, err := s.gen.leases.Create(ctx, leases.WithID(useLeasePrefix+chain))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("keep layers in use: %w", err)
	}
	resource := leases.Resource{ID: chain, Type: "snapshots/" + snapshotterName}
	if err := s.gen.leases.AddResource(ctx, lease, resource); err != nil {
		return fmt.Errorf("keep layers in use: %w", err)
	}
	return nil
}
