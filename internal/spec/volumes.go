package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/directory"
)

// volumesField names the volumes of an image in warnings and errors.
const volumesField = "Volumes of the image"

// addVolumes binds the volumes that the image declares. One is at the path that the links of the image lead to, which no
// mount of the request may have. What cannot be a volume is left out, with a warning.
func (s *mountSet) addVolumes(in Input) error {
	taken := map[string]specs.Mount{}
	for _, mount := range s.mounts {
		at, err := inImage(in.Rootfs, mount.Destination)
		if err != nil {
			return fmt.Errorf("mounts at %q: %w", mount.Destination, err)
		}
		taken[at], taken[mount.Destination] = mount, mount
	}
	requested := slices.Clone(s.mounts)
	for _, volume := range in.Volumes {
		at, err := inImage(in.Rootfs, volume.Path)
		if err != nil {
			return fmt.Errorf("%s: %.200q: %w", volumesField, volume.Path, err)
		}
		if _, ok := taken[at]; ok {
			continue
		}
		if reason := noVolume(at, requested); reason != "" {
			in.warnings.Add(volumesField, volume.Path, reason)
			continue
		}
		mount := specs.Mount{Type: "bind", Source: volume.Source, Destination: at, Options: []string{"rbind", propagationPrivate, "rw"}}
		taken[at] = mount
		s.mounts = append(s.mounts, mount)
	}
	return nil
}

// inImage is where the links of a root file system lead to.
func inImage(rootfs, name string) (string, error) {
	target, err := securejoin.SecureJoin(rootfs, name)
	if err != nil {
		return "", err
	}
	return path.Clean("/" + strings.TrimPrefix(target, path.Clean(rootfs))), nil
}

// noVolume says why there is no volume at a path; it is empty if there is one.
func noVolume(at string, requested []specs.Mount) string {
	switch {
	case at == "/":
		return "is ignored: the root directory cannot be a volume"
	case within(at, "/proc"), within(at, "/sys"), at == devDir, within(at, shmDir), within(at, "/dev/pts"), within(at, "/dev/mqueue"):
		return "is ignored: a file system of the kernel is mounted there"
	}
	var above specs.Mount
	for _, mount := range requested {
		if within(at, mount.Destination) && len(mount.Destination) > len(above.Destination) {
			above = mount
		}
	}
	if above.Destination == "" {
		return ""
	}
	dir, err := directory.OpenDirInRoot(above.Source, strings.TrimPrefix(at, strings.TrimSuffix(above.Destination, "/")))
	switch {
	case err == nil:
		if err := dir.Close(); err != nil {
			return "is ignored: " + err.Error()
		}
		return ""
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("is ignored: the mount at %s has something else than a directory there", above.Destination)
	case isReadOnly(above):
		return fmt.Sprintf("is ignored: the read-only mount at %s has no such directory", above.Destination)
	}
	return ""
}

// isReadOnly tells whether no mount point can be made in a mount.
func isReadOnly(mount specs.Mount) bool {
	var st unix.Statfs_t
	err := unix.Statfs(mount.Source, &st)
	return slices.Contains(mount.Options, "ro") || slices.Contains(mount.Options, "rro") || err == nil && st.Flags&unix.ST_RDONLY != 0
}

// within tells whether a path is that of a directory or below it.
func within(at, dir string) bool {
	return at == dir || strings.HasPrefix(at, strings.TrimSuffix(dir, "/")+"/")
}
