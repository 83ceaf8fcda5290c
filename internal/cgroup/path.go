package cgroup

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

// Driver says who manages the cgroup tree.
type Driver int

// The drivers that the kubelet knows.
const (
	// Cgroupfs means that cgroups are made by writing to the file system.
	Cgroupfs Driver = iota
	// Systemd means that cgroups are slices and scopes made by systemd.
	Systemd
)

// String returns the name that kubelet's configuration uses for the driver.
func (d Driver) String() string {
	if d == Systemd {
		return driverSystemd
	}
	return driverCgroupfs
}

const (
	// defaultParent and defaultSlice hold the containers of pods whose
	// request names no cgroup parent.
	defaultParent = "/berth"
	defaultSlice  = "berth.slice"

	// scopePrefix starts the names of the scopes of containers.
	scopePrefix = "berth"

	sliceSuffix = ".slice"
)

// ParentPath returns the cgroup, as a cgroupfs path, that the CRI field
// cgroup_parent means under the driver. The field is always cgroupfs style;
// with systemd its last element must be the name of a slice.
func ParentPath(driver Driver, parent string) (string, error) {
	if driver == Systemd {
		slice, err := sliceOf(parent)
		if err != nil {
			return "", err
		}
		return expandSlice(slice)
	}
	if parent == "" {
		return defaultParent, nil
	}
	clean := path.Clean("/" + parent)
	if clean == "/" || hasDotDot(parent) {
		return "", fmt.Errorf("linux.cgroup_parent %q: must name a cgroup below the root: %w", parent, errdefs.ErrInvalidArgument)
	}
	return clean, nil
}

// ContainerPath returns where the cgroup of a container is: as the OCI spec's
// cgroupsPath has it for the driver, and as a cgroupfs path.
func ContainerPath(driver Driver, parent, id string) (ociPath, fsPath string, err error) {
	base, err := ParentPath(driver, parent)
	if err != nil {
		return "", "", err
	}
	if driver == Systemd {
		ociPath = path.Base(base) + ":" + scopePrefix + ":" + id
		return ociPath, path.Join(base, scopePrefix+"-"+id+".scope"), nil
	}
	fsPath = path.Join(base, id)
	return fsPath, fsPath, nil
}

// sliceOf returns the slice that a cgroup_parent names.
func sliceOf(parent string) (string, error) {
	if parent == "" {
		return defaultSlice, nil
	}
	slice := path.Base(path.Clean("/" + parent))
	if err := checkSlice(slice); err != nil {
		return "", err
	}
	return slice, nil
}

func checkSlice(slice string) error {
	name, ok := strings.CutSuffix(slice, sliceSuffix)
	bad := !ok || name == "" || strings.Contains(name, "/") || strings.Contains(name, "--") ||
		strings.HasPrefix(name, "-") && name != "-" || strings.HasSuffix(name, "-") && name != "-"
	if bad {
		return fmt.Errorf("linux.cgroup_parent: %q is not the name of a systemd slice (like kubepods-burstable.slice): %w",
			slice, errdefs.ErrInvalidArgument)
	}
	return nil
}

// expandSlice returns the cgroupfs path of a slice: systemd puts a-b.slice
// below a.slice.
func expandSlice(slice string) (string, error) {
	if err := checkSlice(slice); err != nil {
		return "", err
	}
	name := strings.TrimSuffix(slice, sliceSuffix)
	if name == "-" {
		return "", fmt.Errorf("linux.cgroup_parent: the root slice cannot hold containers: %w", errdefs.ErrInvalidArgument)
	}
	result, prefix := "", ""
	for part := range strings.SplitSeq(name, "-") {
		prefix += part
		result += "/" + prefix + sliceSuffix
		prefix += "-"
	}
	return result, nil
}

// hasDotDot tells whether one of the elements of p is "..".
func hasDotDot(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// PathOf returns the cgroupfs path of a cgroup that the OCI spec has as
// cgroupsPath under the driver.
func PathOf(driver Driver, ociPath string) (string, error) {
	if driver == Cgroupfs {
		if !path.IsAbs(ociPath) || path.Clean(ociPath) == "/" || hasDotDot(ociPath) {
			return "", fmt.Errorf("%q: must be an absolute path below the root: %w", ociPath, errdefs.ErrInvalidArgument)
		}
		return path.Clean(ociPath), nil
	}
	parts := strings.Split(ociPath, ":")
	if len(parts) != 3 || parts[1] == "" || parts[2] == "" {
		return "", fmt.Errorf("%q: must be slice:prefix:name under systemd: %w", ociPath, errdefs.ErrInvalidArgument)
	}
	base, err := expandSlice(parts[0])
	if err != nil {
		return "", err
	}
	return path.Join(base, parts[1]+"-"+parts[2]+".scope"), nil
}
