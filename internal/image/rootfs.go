package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	continuity "github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/atomicfile"
)

const (
	rootfsDir     = "rootfs"
	rootfsRecord  = "rootfs.json"
	rootfsVersion = 1
	upperDir      = "upper"
	workDir       = "work"
)

// rootfs is a container's writable layer and what it lies on. The record in
// its directory is written last: without it the layer is not complete.
type rootfs struct {
	Version int      `json:"version"`
	Image   string   `json:"image"`
	Chain   string   `json:"chain"`
	Layers  []string `json:"layers"` // topmost first
}

var validKey = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$`)

func (s *Store) rootfsPath(key string, more ...string) string {
	return filepath.Join(slices.Insert(more, 0, s.opts.Root, rootfsDir, key)...)
}

func checkKey(key string) error {
	if !validKey.MatchString(key) {
		return fmt.Errorf("root filesystem key %q: not 1 to 200 letters, digits, dots, dashes or underscores: %w",
			key, errdefs.ErrInvalidArgument)
	}
	return nil
}

// PrepareRootfs makes a writable layer on top of an image. From then on the
// image's layers stay, even if the image is removed, until RemoveRootfs. It
// may be repeated. The error is ErrNotFound if there is no such image, and
// ErrAlreadyExists if the key stands for a layer on another one.
func (s *Store) PrepareRootfs(ctx context.Context, key, imageID string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if image, err := s.Resolve(imageID); err == nil {
		if err := s.verify(ctx, image.ID); err != nil {
			return fmt.Errorf("prepare root filesystem %s: %w", key, err)
		}
	}
	record, made, err := s.uses.begin(key, imageID, func() (*Image, error) { return s.Resolve(imageID) })
	if err != nil {
		return fmt.Errorf("prepare root filesystem %s: %w", key, err)
	}
	if made {
		return nil
	}
	if err := s.writeRootfs(key, record); err != nil {
		err = errors.Join(err, os.RemoveAll(s.rootfsPath(key)))
		s.uses.end(key)
		if isFull(err) {
			err = fmt.Errorf("the disk is full: %w: %w", err, errdefs.ErrResourceExhausted)
		}
		return fmt.Errorf("prepare root filesystem %s: %w", key, err)
	}
	s.uses.complete(key)
	return nil
}

func (s *Store) writeRootfs(key string, record *rootfs) error {
	// An earlier attempt may have been interrupted.
	if err := os.RemoveAll(s.rootfsPath(key)); err != nil {
		return err
	}
	if err := os.Mkdir(s.rootfsPath(key), dirMode); err != nil {
		return err
	}
	// The upper directory is what the container sees as its root directory.
	if err := os.Mkdir(s.rootfsPath(key, upperDir), dirMode); err != nil {
		return err
	}
	if err := os.Chmod(s.rootfsPath(key, upperDir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(s.rootfsPath(key, workDir), dirMode); err != nil {
		return err
	}
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	// Not synced: after a power loss the container is gone anyway.
	return atomicfile.Write(s.rootfsPath(key, rootfsRecord), data, fileMode)
}

// MountRootfs mounts the writable layer with its image at target, which it
// makes if need be. It may be repeated. Read-only means that the mount is. The
// mapping is that of the pod's user namespace, nil without one.
func (s *Store) MountRootfs(_ context.Context, key, target string, readonly bool, m *Mapping) error {
	if err := checkKey(key); err != nil {
		return err
	}
	record, err := s.uses.find(key)
	if err != nil {
		return fmt.Errorf("mount root filesystem %s: %w", key, err)
	}
	if err := os.MkdirAll(target, dirMode); err != nil {
		return fmt.Errorf("mount root filesystem %s: %w", key, err)
	}
	mounted, err := mountinfo.Mounted(target)
	if err != nil {
		return fmt.Errorf("mount root filesystem %s: %w", key, err)
	}
	if mounted {
		return nil
	}
	if err := s.mountRootfs(key, record, target, readonly, m); err != nil {
		return fmt.Errorf("mount root filesystem %s at %s: %w", key, target, err)
	}
	return nil
}

func (s *Store) mountRootfs(key string, record *rootfs, target string, readonly bool, m *Mapping) error {
	access, flags := "rw", uintptr(0)
	if readonly {
		access, flags = "ro", unix.MS_RDONLY
	}
	if m != nil {
		if err := os.Chown(s.rootfsPath(key, upperDir), int(m.UID), int(m.GID)); err != nil {
			return err
		}
	}
	if len(record.Layers) == 0 {
		if label := s.uses.label(key); label != "" { // a bind mount has no label of its own
			if err := unix.Lsetxattr(s.rootfsPath(key, upperDir), labelAttr, []byte(label), 0); err != nil {
				return err
			}
		}
		plain := mount.Mount{Type: "bind", Source: s.rootfsPath(key, upperDir), Options: []string{"bind", access}}
		return plain.Mount(target)
	}
	// A volatile mount leaves this mark, and the kernel refuses the next mount
	// as long as it is there: data may be missing after a power loss. Then the
	// container did not survive either.
	if err := os.RemoveAll(s.rootfsPath(key, workDir, "work", "incompat")); err != nil {
		return err
	}
	more := []string{"index=off", "workdir=" + s.rootfsPath(key, workDir), "upperdir=" + s.rootfsPath(key, upperDir)}
	more = append(more, labelOptions(s.uses.label(key))...)
	err := m.overlay(target, record.Layers, flags, append(slices.Clone(more), "volatile"))
	if errors.Is(err, unix.EINVAL) {
		return m.overlay(target, record.Layers, flags, more) // Linux before 5.10
	}
	return err
}

// labelOptions are the options of a mount all of whose files have an SELinux label; empty for none.
func labelOptions(label string) []string {
	if label == "" {
		return nil
	}
	return []string{fmt.Sprintf("context=%q", label)} // it contains commas
}

// LabelRootfs notes the SELinux label that all files have where the root
// filesystem is mounted next. It must have been prepared.
func (s *Store) LabelRootfs(key, label string) error {
	if err := s.uses.setLabel(key, label); err != nil {
		return fmt.Errorf("label root filesystem %s: %w", key, err)
	}
	return nil
}

// UnmountRootfs unmounts whatever is mounted at target. Nothing being there is
// no error.
func (s *Store) UnmountRootfs(_ context.Context, target string) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			// A process has its working directory in it. It goes away with the last one.
			err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch {
		case err == nil:
			continue // there may be another one beneath
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			return fmt.Errorf("unmount root filesystem %s: %w", target, err)
		}
	}
}

// RemoveRootfs removes a writable layer, which must not be mounted any more.
// That there is none is no error.
func (s *Store) RemoveRootfs(_ context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	// The record goes first: what is interrupted after it is not complete.
	err := os.Remove(s.rootfsPath(key, rootfsRecord))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.RemoveAll(s.rootfsPath(key))
	}
	if err != nil {
		return fmt.Errorf("remove root filesystem %s: %w", key, err)
	}
	if chain := s.uses.end(key); chain != "" && !s.index.Load().hasChain(chain) {
		s.kickCollector()
	}
	return nil
}

// RootfsKeys returns the keys of all writable layers, also those whose making
// or removal was interrupted.
func (s *Store) RootfsKeys(context.Context) ([]string, error) {
	entries, err := os.ReadDir(s.rootfsPath(""))
	if err != nil {
		return nil, fmt.Errorf("list root filesystems: %w", err)
	}
	keys := make([]string, 0, len(entries))
	for _, entry := range entries {
		keys = append(keys, entry.Name())
	}
	return keys, nil
}

// RootfsUsage returns what a container wrote, and what is in the volumes that its image declares. It walks the layer: do not call
// it while a caller waits.
func (s *Store) RootfsUsage(ctx context.Context, key string) (bytes, inodes uint64, err error) {
	if err := checkKey(key); err != nil {
		return 0, 0, err
	}
	if _, err := s.uses.find(key); err != nil {
		return 0, 0, fmt.Errorf("measure root filesystem %s: %w", key, err)
	}
	roots := []string{s.rootfsPath(key, upperDir)}
	if _, err := os.Stat(s.rootfsPath(key, volumesDir)); err == nil {
		roots = append(roots, s.rootfsPath(key, volumesDir))
	}
	used, err := continuity.DiskUsage(ctx, roots...)
	if err != nil {
		return 0, 0, fmt.Errorf("measure root filesystem %s: %w", key, err)
	}
	return uint64(used.Size), uint64(used.Inodes), nil
}
