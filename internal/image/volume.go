package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/atomicfile"
)

const (
	volumesDir = "volumes"
	// emptyDir is a directory with nothing in it.
	emptyDir = "empty"
	// volumeUse begins the key under which uses know a volume. Keys of root
	// filesystems have no slash.
	volumeUse = "volume/"
)

func (s *Store) volumePath(key string) string { return filepath.Join(s.opts.Root, volumesDir, key) }

// PrepareVolume notes that key is a volume of an image or artifact. From then
// on what is in it stays, even if the image is removed, until RemoveVolume. It
// may be repeated. The error is ErrNotFound if there is no such image, and
// ErrAlreadyExists if the key stands for another one.
func (s *Store) PrepareVolume(ctx context.Context, key, imageID string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if image, err := s.Resolve(imageID); err == nil {
		if err := s.verify(ctx, image.ID); err != nil {
			return fmt.Errorf("prepare volume %s: %w", key, err)
		}
	}
	s.uses.endStale(volumeUse + key)
	record, made, err := s.uses.begin(volumeUse+key, imageID, func() (*Image, error) { return s.Resolve(imageID) })
	if err != nil {
		return fmt.Errorf("prepare volume %s: %w", key, err)
	}
	if made {
		return nil
	}
	data, err := json.Marshal(record)
	if err == nil {
		// Not synced: after a power loss the container is gone anyway.
		err = atomicfile.Write(s.volumePath(key), data, fileMode)
	}
	if err != nil {
		s.uses.end(volumeUse + key)
		return fmt.Errorf("prepare volume %s: %w", key, err)
	}
	s.uses.complete(volumeUse + key)
	return nil
}

// MountVolume mounts a volume read-only at target, which it makes if need be.
// It may be repeated. UnmountRootfs undoes it. The mapping is that of the pod's
// user namespace, nil without one; label is the SELinux label that all files
// have there, empty for their own.
func (s *Store) MountVolume(_ context.Context, key, target string, m *Mapping, label string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	record, err := s.uses.find(volumeUse + key)
	if err != nil {
		return fmt.Errorf("mount volume %s: %w", key, err)
	}
	if err := os.MkdirAll(target, dirMode); err != nil {
		return fmt.Errorf("mount volume %s: %w", key, err)
	}
	mounted, err := mountinfo.Mounted(target)
	if err != nil {
		return fmt.Errorf("mount volume %s: %w", key, err)
	}
	if mounted {
		return nil
	}
	layers := record.Layers
	if len(layers) == 1 && label != "" { // what is bound has the labels of its files, and an overlay needs two
		layers = append(slices.Clone(layers), filepath.Join(s.opts.Root, emptyDir))
	}
	if err := mountVolume(layers, target, m, labelOptions(label)); err != nil {
		return fmt.Errorf("mount volume %s at %s: %w", key, target, err)
	}
	return nil
}

// mountVolume shows layers without a writable one on top. Their devices and setuid programs are files without effect.
func mountVolume(layers []string, target string, m *Mapping, more []string) error {
	switch {
	case len(layers) == 0: // an image may be empty
		options := append([]string{"ro", "nosuid", "nodev", "mode=755", "size=4k"}, more...)
		if m != nil {
			options = append(options, fmt.Sprintf("uid=%d,gid=%d", m.UID, m.GID))
		}
		empty := mount.Mount{Type: "tmpfs", Source: "tmpfs", Options: options}
		return empty.Mount(target)
	case len(layers) == 1 && m != nil:
		return m.bind(target, layers[0])
	case len(layers) == 1: // an overlay needs two
		bind := mount.Mount{Type: "bind", Source: layers[0], Options: []string{"bind", "ro", "nosuid", "nodev"}}
		return bind.Mount(target)
	}
	return m.overlay(target, layers, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, more)
}

// RemoveVolume lets go of what a volume keeps. It must not be mounted any more.
// That there is no such volume is no error.
func (s *Store) RemoveVolume(_ context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if err := os.Remove(s.volumePath(key)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove volume %s: %w", key, err)
	}
	if chain := s.uses.end(volumeUse + key); chain != "" && !s.index.Load().hasChain(chain) {
		s.kickCollector()
	}
	return nil
}

// VolumeKeys returns the keys of all volumes.
func (s *Store) VolumeKeys(context.Context) ([]string, error) {
	entries, err := os.ReadDir(s.volumePath(""))
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	keys := make([]string, 0, len(entries))
	for _, entry := range entries {
		keys = append(keys, entry.Name())
	}
	return keys, nil
}
