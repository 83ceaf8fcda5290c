package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-runtime/berth/internal/namespace/idmap"
	"github.com/berth-runtime/berth/internal/namespace/overlay"
)

// Mapping shows the files of an image with the owners that they have in a user
// namespace. Layers on disk stay as they are, for all pods; what a container
// writes is on disk with the IDs that its user namespace has on the host, so
// that a file of its root is never one of the host's root.
type Mapping struct {
	// User is the file of the user namespace.
	User string
	// UID and GID are what its root is on the host.
	UID, GID uint32
}

// overlay mounts layers, topmost first, mapped; without a mapping (nil) they are as on disk.
func (m *Mapping) overlay(target string, layers []string, flags uintptr, more []string) error {
	if m == nil {
		return overlay.Mount(target, layers, flags, more, nil)
	}
	return m.with(func(user *os.File) error { return overlay.Mount(target, layers, flags, more, user) })
}

// bind mounts a single layer read-only, mapped.
func (m *Mapping) bind(target, layer string) error {
	return m.with(func(user *os.File) error {
		_, err := idmap.Bind(layer, target, user, idmap.Options{Readonly: true})
		return err
	})
}

func (m *Mapping) with(fn func(user *os.File) error) error {
	user, err := os.Open(m.User)
	if err != nil {
		return fmt.Errorf("open user namespace: %w", err)
	}
	return errors.Join(fn(user), user.Close())
}

// TryMapping is nil if root filesystems can be mapped on this host, and says
// why not. It tries with the file system of the store.
func (s *Store) TryMapping() error {
	if err := overlay.TryMapped(filepath.Join(s.opts.Root, "mapping")); err != nil {
		return fmt.Errorf("idmapped root filesystems in %s: %w", s.opts.Root, err)
	}
	return nil
}
