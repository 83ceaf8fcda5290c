package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/namespace/idmap"
	"github.com/berth-runtime/berth/internal/spec"
)

// A pod with a user namespace sees the files that it is given with owners of
// that namespace. An OCI runtime may or may not know how to mount them so, so
// it is done here, for all alike: the layers of images are mapped where they
// are mounted, and each mount of the request that has mappings has an idmapped
// copy, which the OCI runtime binds, at
//
//	<state>/containers/<container ID>/mounts/<index in the request>

// owner is what root of a pod is on the host.
type owner struct{ uid, gid uint32 }

func rootOf(cfg *runtimeapi.PodSandboxConfig) owner {
	uids, gids, ok := spec.UserNamespace(cfg)
	if !ok {
		return owner{}
	}
	return owner{uids[0].HostID, gids[0].HostID}
}

// lastIDs are the last IDs of a pod's user namespace, which images do not use: those of the pod's init process.
func lastIDs(cfg *runtimeapi.PodSandboxConfig) owner {
	uids, gids, ok := spec.UserNamespace(cfg)
	if !ok {
		return owner{}
	}
	return owner{uids[0].Size - 1, gids[0].Size - 1}
}

// mapping is how images are to be mounted for the pod: nil without a user
// namespace.
func (s *sandbox) mapping() *image.Mapping {
	if _, _, ok := spec.UserNamespace(s.rec.Config.M); !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	root := rootOf(s.rec.Config.M)
	return &image.Mapping{User: s.rec.Namespaces.User, UID: root.uid, GID: root.gid}
}

// isMapped tells whether a mount needs an idmapped copy of its source.
func isMapped(m *runtimeapi.Mount) bool { return len(m.GetUidMappings()) > 0 && m.GetImage() == nil }

// usesIDMap tells whether a container has such mounts.
func usesIDMap(cfg *runtimeapi.ContainerConfig) bool {
	return slices.ContainsFunc(cfg.GetMounts(), isMapped)
}

func (e *Engine) mappedDir(id string) string { return filepath.Join(e.bundleDir(id), "mounts") }

// idmapMounts mounts the sources of all mounts that have mappings.
func (c *container) idmapMounts() error {
	for i, m := range c.rec.Config.M.GetMounts() {
		if !isMapped(m) {
			continue
		}
		if err := c.mapMount(i, m); err != nil {
			return fmt.Errorf("mounts[%d].uidMappings: mount %q for %q: %w", i, m.GetHostPath(), m.GetContainerPath(), err)
		}
	}
	return nil
}

func (c *container) mapMount(index int, m *runtimeapi.Mount) error {
	source, err := spec.MountSource(index, m, nil)
	if err != nil {
		return err
	}
	target := filepath.Join(c.engine.mappedDir(c.rec.ID), strconv.Itoa(index))
	if err := makeMountPoint(source, target); err != nil {
		return err
	}
	if mounted, err := mountinfo.Mounted(target); err != nil || mounted {
		return err
	}
	user, err := c.mappingOf(m)
	if err != nil {
		return err
	}
	slave := m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	whole, err := idmap.Bind(source, target, user, idmap.Options{Slave: slave})
	if err == nil && !whole {
		c.log.Warn("file systems below a mount cannot be idmapped, their files belong to the overflow user in the container", "path", source)
	}
	return errors.Join(err, user.Close())
}

// mappingOf opens a user namespace with the mapping of a mount: that of the
// pod, as the kubelet has it, or else one that is made for it.
func (c *container) mappingOf(m *runtimeapi.Mount) (*os.File, error) {
	uids, gids := spec.IDMappings(m.GetUidMappings()), spec.IDMappings(m.GetGidMappings())
	podUIDs, podGIDs, ok := spec.UserNamespace(c.sandbox.rec.Config.M)
	if ok && uids[0] == podUIDs[0] && gids[0] == podGIDs[0] {
		return os.Open(c.sandbox.mapping().User)
	}
	return namespace.NewUser([]specs.LinuxIDMapping{uids[0]}, []specs.LinuxIDMapping{gids[0]})
}

// makeMountPoint makes a file or a directory, as source is.
func makeMountPoint(source, target string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.MkdirAll(target, 0o700)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o400)
	if err != nil {
		return err
	}
	return f.Close()
}

// unmapMounts removes what idmapMounts and bindDeclared have made. It looks for what is there, not
// into the record, which may be lost.
func (e *Engine) unmapMounts(ctx context.Context, id string) error {
	dir := e.mappedDir(id)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		target := filepath.Join(dir, entry.Name())
		if err := e.opts.Images.UnmountRootfs(ctx, target); err != nil {
			return err
		}
		if err := removeFile(target); err != nil {
			return err
		}
	}
	return removeFile(dir)
}

// probeMapped looks whether all copies are still mounted.
func (c *container) probeMapped() error {
	for index, path := range c.mappedPaths() {
		if mounted, err := mountinfo.Mounted(path); err != nil || !mounted {
			return errors.Join(err, fmt.Errorf("its idmapped mount %d is gone, as after a reboot of the node", index))
		}
	}
	for _, v := range c.declaredMounts() {
		if mounted, err := mountinfo.Mounted(v.Source); err != nil || !mounted {
			return errors.Join(err, fmt.Errorf("its volume %q is gone, as after a reboot of the node", v.Path))
		}
	}
	return nil
}

// mappedPaths tells where the copies are, by index in the request.
func (c *container) mappedPaths() map[int]string {
	paths := map[int]string{}
	for i, m := range c.rec.Config.M.GetMounts() {
		if isMapped(m) {
			paths[i] = filepath.Join(c.engine.mappedDir(c.rec.ID), strconv.Itoa(i))
		}
	}
	return paths
}
