package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// useLeasePrefix begins the ID of a lease that keeps the layers of a removed
// image for the containers that still run from them.
const useLeasePrefix = "use-"

// adopt gives an image its names and shows it, if it is usable. The caller's
// lease holds what belongs to it.
func (s *Store) adopt(ctx context.Context, target ocispec.Descriptor, as []string) (*loaded, error) {
	image, err := s.load(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("check pulled image: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.names.clone()
	for _, name := range as {
		changed[name] = target
	}
	if err := s.rename(ctx, changed); err != nil {
		return nil, fmt.Errorf("record image: %w", err)
	}
	s.loaded[target.Digest.String()] = image
	s.names = changed
	s.forgetUnnamed()
	s.publish()
	if err := s.measure(ctx); err != nil {
		s.log.Warn("cannot measure the image store", "error", err)
	}
	return image, nil
}

// rename makes the recorded names those of changed, all or none. The caller
// holds s.mu.
func (s *Store) rename(ctx context.Context, changed names) error {
	return s.gen.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for name, target := range changed {
			record := images.Image{Name: name, Target: target}
			old, known := s.names[name]
			var err error
			switch {
			case !known:
				_, err = s.gen.images.Create(ctx, record)
			case old.Digest != target.Digest:
				_, err = s.gen.images.Update(ctx, record)
			}
			if err != nil {
				return err
			}
		}
		for name := range s.names {
			if _, kept := changed[name]; kept {
				continue
			}
			if err := s.gen.images.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return changed.write(s.namesPath())
	})
}

// GC removes every blob and layer that no image, no container and no pull
// under way refers to.
func (s *Store) GC(ctx context.Context) error {
	ctx = withLog(inNamespace(ctx), s.log)
	s.swept.Lock()
	defer s.swept.Unlock()
	if err := s.reserve.room(func() error { return s.sweep(ctx) }); err != nil {
		return err
	}
	s.reserve.restore()
	return s.measure(ctx)
}

// sweep is GC without the accounts.
func (s *Store) sweep(ctx context.Context) error {
	kept, err := s.gen.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range kept {
		chain, ok := strings.CutPrefix(lease.ID, useLeasePrefix)
		if !ok || s.uses.held(chain) {
			continue
		}
		if err := s.gen.leases.Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("let go of layers that were in use: %w", err)
		}
	}
	// A collection that is cancelled in the middle leaks a goroutine.
	if _, err := s.gen.db.GarbageCollect(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	if err := s.sweepArtifacts(); err != nil {
		return err
	}
	return s.dropOldGenerations()
}

// kickCollector has garbage collected soon.
func (s *Store) kickCollector() {
	select {
	case s.collect <- struct{}{}:
	default: // it is about to run anyway
	}
}

// collector collects on request, until the store is closed.
func (s *Store) collector() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.collect:
		}
		if err := s.GC(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log.Error("cannot collect unused images", "error", err)
		}
	}
}

// dropOldGenerations removes what is left of damaged stores once everything in
// them was made again and no container runs from their layers. The databases
// stay: they may help to find the defect.
func (s *Store) dropOldGenerations() error {
	numbers, err := listGenerations(s.opts.Root)
	if err != nil {
		return fmt.Errorf("list image stores: %w", err)
	}
	for _, number := range numbers {
		dir := generationDir(s.opts.Root, number)
		if dir == s.gen.dir || s.uses.beneath(dir) {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, restoredMark)); err != nil {
			continue // not restored yet, or not restorable
		}
		for _, part := range []string{"content", "snapshots", artifactsDir} {
			if err := os.RemoveAll(filepath.Join(dir, part)); err != nil {
				return fmt.Errorf("remove damaged image store: %w", err)
			}
		}
	}
	return nil
}
