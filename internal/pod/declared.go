package pod

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/namespace/idmap"
	"github.com/berth-runtime/berth/internal/selinux"
	"github.com/berth-runtime/berth/internal/spec"
)

// A volume that an image declares (VOLUME) is a directory that the image store makes beside the writable layer of the
// container. It is bound, with the idmapped copies of mounts, at
//
//	<state>/containers/<container ID>/mounts/volume-<number>
//
// where an OCI runtime gets at it also in a user namespace.

// Modes of the volumes that images declare; any other one is to ignore them.
const (
	volumesBind  = "bind"
	volumesMkdir = "mkdir"
)

// declaredVolumes are the volumes that the image of a container declares.
type declaredVolumes struct {
	// Mode is that of the daemon when the container was created.
	Mode string `json:"mode,omitempty"`
	// Paths are absolute paths in the container.
	Paths []string `json:"paths,omitempty"`
}

// declaredOf lists the volumes of an image except those at which the request mounts something.
func (e *Engine) declaredOf(image ocispec.ImageConfig, cfg *runtimeapi.ContainerConfig) (declaredVolumes, error) {
	declared := declaredVolumes{Mode: e.opts.ImageVolumes}
	if declared.Mode != volumesBind && declared.Mode != volumesMkdir || len(image.Volumes) == 0 {
		return declaredVolumes{}, nil
	}
	if err := spec.CheckImage(image); err != nil {
		return declaredVolumes{}, err
	}
	mounted := map[string]bool{}
	for _, m := range cfg.GetMounts() {
		mounted[path.Clean(m.GetContainerPath())] = true
	}
	for _, volume := range slices.Sorted(maps.Keys(image.Volumes)) {
		if volume = path.Clean("/" + volume); !mounted[volume] && !slices.Contains(declared.Paths, volume) {
			declared.Paths = append(declared.Paths, volume)
		}
	}
	return declared, nil
}

func (d declaredVolumes) bound() []string {
	if d.Mode == volumesBind {
		return d.Paths
	}
	return nil
}

func (c *container) declaredTarget(number int) string {
	return filepath.Join(c.engine.mappedDir(c.rec.ID), "volume-"+strconv.Itoa(number))
}

// bindDeclared makes the volumes and binds them. No process of the container runs yet.
func (c *container) bindDeclared(ctx context.Context) error {
	volumes := c.rec.Declared.bound()
	if len(volumes) == 0 {
		return nil
	}
	dirs, err := c.engine.opts.Images.PrepareVolumeDirs(ctx, c.rec.ID, c.engine.rootfsDir(c.rec.ID), volumes, c.sandbox.mapping())
	if err != nil {
		return err
	}
	for i, dir := range dirs {
		if err := c.bindVolume(dir, c.declaredTarget(i)); err != nil {
			return fmt.Errorf("bind volume %q of the image: %w", volumes[i], err)
		}
	}
	return nil
}

func (c *container) bindVolume(dir, target string) error {
	if mounted, err := mountinfo.Mounted(target); err == nil && mounted {
		return nil
	}
	if label := c.rec.Labels.Mount; label != "" {
		if err := selinux.Relabel(dir, label); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	tree, err := idmap.Copy(dir, false)
	if err != nil {
		return err
	}
	defer tree.Close() //nolint:errcheck // what is attached stays
	return idmap.Attach(tree, target)
}

// declaredMounts are the volumes for the spec.
func (c *container) declaredMounts() []spec.Volume {
	var volumes []spec.Volume
	for i, at := range c.rec.Declared.bound() {
		volumes = append(volumes, spec.Volume{Path: at, Source: c.declaredTarget(i)})
	}
	return volumes
}

// declaredPlaces tells where in the root file system the volumes are mounted, by number.
func (c *container) declaredPlaces() (map[int]string, error) {
	volumes := c.declaredMounts()
	if len(volumes) == 0 {
		return nil, nil //nolint:nilnil // there are none
	}
	s, err := c.readSpec()
	if err != nil {
		return nil, err
	}
	places := map[int]string{}
	for _, mount := range s.Mounts {
		if number := slices.IndexFunc(volumes, func(v spec.Volume) bool { return v.Source == mount.Source }); number >= 0 {
			places[number] = mount.Destination
		}
	}
	return places, nil
}

// makeDeclared makes the volumes in the root file system where it has no such directories; they belong to the user of the
// first process.
func (c *container) makeDeclared(user specs.User) error {
	if c.rec.Declared.Mode != volumesMkdir {
		return nil
	}
	as := owner{user.UID, user.GID}
	if root := rootOf(c.sandbox.rec.Config.M); root != (owner{}) {
		as = owner{root.uid + user.UID, root.gid + user.GID}
	}
	rootfs := c.engine.rootfsDir(c.rec.ID)
	for _, volume := range c.rec.Declared.Paths {
		target, err := securejoin.SecureJoin(rootfs, volume)
		if err == nil {
			err = makeIn(rootfs, target, as)
		}
		if err != nil {
			return fmt.Errorf("create the volume %q of the image: %w", volume, err)
		}
	}
	return nil
}
