package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An image that containers of a pod mount is a volume of the pod: it is mounted
// once, however many containers want it, at
//
//	<state>/volumes/<sandbox ID>/<image ID>
//
// A container claims its volumes before it mounts them and gives the claims up
// before they are unmounted; unreferenced volumes are unmounted. The references follow from
// the records of the containers, so that a new daemon has them again.

// ImageVolumeError says that an image could not be mounted into a container.
type ImageVolumeError struct{ cause error }

// Error is the text of the cause.
func (e *ImageVolumeError) Error() string { return e.cause.Error() }

// Unwrap returns the cause.
func (e *ImageVolumeError) Unwrap() error { return e.cause }

// volumeRecord is one mount of an image.
type volumeRecord struct {
	// Mount is its index among the mounts of the request.
	Mount   int    `json:"mount"`
	ImageID string `json:"imageID"`
}

// claims are the volumes of a sandbox with the containers that use them.
type claims struct {
	// mu is held while volumes are mounted and unmounted.
	mu sync.Mutex
	// by holds container IDs by name of the volume.
	by map[string]map[string]bool
}

func (c *claims) add(volume, container string) {
	if c.by == nil {
		c.by = map[string]map[string]bool{}
	}
	if c.by[volume] == nil {
		c.by[volume] = map[string]bool{}
	}
	c.by[volume][container] = true
}

func (c *claims) drop(container string) {
	for volume, containers := range c.by {
		if delete(containers, container); len(containers) == 0 {
			delete(c.by, volume)
		}
	}
}

// volumeName is the image's ID as the name of a file.
func volumeName(imageID string) string { return strings.Replace(imageID, ":", "-", 1) }

func volumeKey(sandboxID, volume string) string { return sandboxID + "." + volume }

func (e *Engine) volumesDir(sandboxID string) string {
	return filepath.Join(e.opts.State, "volumes", sandboxID)
}

// resolveVolumes finds the images that a request mounts.
func (e *Engine) resolveVolumes(cfg *runtimeapi.ContainerConfig) ([]volumeRecord, error) {
	var volumes []volumeRecord
	for i, m := range cfg.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		img, err := e.opts.Images.Resolve(m.GetImage().GetImage())
		if err != nil {
			return nil, &ImageVolumeError{fmt.Errorf("mounts[%d].image.image: %w", i, err)}
		}
		volumes = append(volumes, volumeRecord{Mount: i, ImageID: img.ID})
	}
	return volumes, nil
}

// claimVolumes notes which volumes the container uses.
func (c *container) claimVolumes() {
	for _, v := range c.rec.Volumes {
		c.sandbox.volumes.add(volumeName(v.ImageID), c.rec.ID)
	}
}

// mountVolumes mounts those volumes of the container that no other container
// of the pod has mounted, and looks whether the parts are there that it wants.
func (c *container) mountVolumes(ctx context.Context) error {
	e, s := c.engine, c.sandbox
	s.volumes.mu.Lock()
	defer s.volumes.mu.Unlock()
	c.claimVolumes()
	for _, v := range c.rec.Volumes {
		key := volumeKey(s.rec.ID, volumeName(v.ImageID))
		err := e.opts.Images.PrepareVolume(ctx, key, v.ImageID)
		if err == nil {
			err = e.opts.Images.MountVolume(ctx, key, c.volumeTarget(v), s.mapping(), s.rec.Labels.Mount)
		}
		if err != nil {
			return &ImageVolumeError{fmt.Errorf("mounts[%d].image %s: %w", v.Mount, v.ImageID, err)}
		}
	}
	_, err := c.volumePaths()
	return err
}

// unmountVolumes gives the container's claims up. It looks for what is there,
// not into the record, which may be lost.
func (c *container) unmountVolumes(ctx context.Context) error {
	s := c.sandbox
	s.volumes.mu.Lock()
	defer s.volumes.mu.Unlock()
	s.volumes.drop(c.rec.ID)
	return c.engine.removeVolumes(ctx, s.rec.ID, func(volume string) bool { return s.volumes.by[volume] != nil })
}

// removeVolumes removes the volumes of a sandbox except those in use.
func (e *Engine) removeVolumes(ctx context.Context, sandboxID string, inUse func(volume string) bool) error {
	dir := e.volumesDir(sandboxID)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	left := false
	for _, entry := range entries {
		if inUse(entry.Name()) {
			left = true
			continue
		}
		target := filepath.Join(dir, entry.Name())
		if err := e.opts.Images.UnmountRootfs(ctx, target); err != nil {
			return err
		}
		if err := removeFile(target); err != nil {
			return err
		}
	}
	keys, err := e.opts.Images.VolumeKeys(ctx)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if volume, ok := strings.CutPrefix(key, volumeKey(sandboxID, "")); ok && !inUse(volume) {
			if err := e.opts.Images.RemoveVolume(ctx, key); err != nil {
				return err
			}
		}
	}
	if left {
		return nil
	}
	return removeFile(dir)
}

// probeVolumes looks whether the container's volumes are still mounted.
func (c *container) probeVolumes() error {
	for _, v := range c.rec.Volumes {
		if mounted, err := mountinfo.Mounted(c.volumeTarget(v)); err != nil || !mounted {
			return errors.Join(err, errors.New("its image volumes are not mounted any more, as after a reboot of the node"))
		}
	}
	return nil
}

func (c *container) volumeTarget(v volumeRecord) string {
	return filepath.Join(c.engine.volumesDir(c.sandbox.rec.ID), volumeName(v.ImageID))
}

// volumePaths tells where on the host the part of an image is that each mount
// wants, by path in the container.
func (c *container) volumePaths() (map[string]string, error) {
	paths := map[string]string{}
	for _, v := range c.rec.Volumes {
		m, path := c.rec.Config.M.GetMounts()[v.Mount], c.volumeTarget(v)
		if sub := m.GetImageSubPath(); sub != "" {
			var err error
			if path, err = findWithin(path, sub); err != nil {
				return nil, &ImageVolumeError{fmt.Errorf("mounts[%d].image_sub_path %q: %w: %w",
					v.Mount, sub, err, errdefs.ErrInvalidArgument)}
			}
		}
		paths[m.GetContainerPath()] = path
	}
	return paths, nil
}

// volumeImages are the IDs of the images that are mounted, by path in the
// container.
func (c *container) volumeImages() map[string]string {
	if len(c.rec.Volumes) == 0 {
		return nil
	}
	ids := map[string]string{}
	for _, v := range c.rec.Volumes {
		ids[c.rec.Config.M.GetMounts()[v.Mount].GetContainerPath()] = v.ImageID
	}
	return ids
}

// findWithin returns the real path of what name leads to when root is the root
// directory: links cannot lead out of it (openat2, Linux 5.6).
func findWithin(root, name string) (string, error) {
	dir, err := os.Open(root)
	if err != nil {
		return "", err
	}
	defer dir.Close() //nolint:errcheck // opened to find something only
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) {
		return "", fmt.Errorf("is not in the image: %w", err)
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(fd) //nolint:errcheck // as above
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	if path != root && !strings.HasPrefix(path, root+"/") {
		return "", fmt.Errorf("leads to %s: %w", path, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}
