// Package cgroup finds, makes, empties and removes control groups on hosts
// with cgroup v1, v2 and both at once.
//
// Paths are always cgroupfs style and start at the mount root of the
// hierarchy ("/kubepods/burstable/podX/<container>"), also when systemd
// manages the tree: ContainerPath translates. The OCI runtime makes the
// cgroup of a container and sets its limits; this package makes the parents,
// moves helper processes, reads events and cleans up.
package cgroup

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Mode says which kinds of cgroup hierarchies a host has mounted.
type Mode int

// The modes in which a host can run its cgroups.
const (
	// V1 means that every controller has its own v1 hierarchy.
	V1 Mode = iota + 1
	// Hybrid means v1 hierarchies with a v2 one beside them. Limits are set
	// through v1; a controller that sits on the v2 hierarchy cannot be used.
	Hybrid
	// V2 means a single unified hierarchy.
	V2
)

// String returns the name that people use for the mode.
func (m Mode) String() string {
	switch m {
	case V1:
		return "v1"
	case Hybrid:
		return "hybrid"
	case V2:
		return "v2"
	default:
		return fmt.Sprintf("Mode(%d)", int(m))
	}
}

// Host knows where the cgroup hierarchies of this machine are mounted. It
// never changes after Detect and is safe for concurrent use.
type Host struct {
	// Mode is the kind of hierarchies.
	Mode Mode

	// unified is the mount point of the v2 hierarchy, empty on V1.
	unified string
	// legacy are the mount points of the v1 hierarchies in a stable order,
	// without duplicates (cpu and cpuacct are often mounted together).
	legacy []string
	// named tells that one of these is systemd's, which has no controller.
	named bool
	// controllers maps a usable controller to the hierarchy it is on.
	controllers map[string]string
}

// Has tells whether limits of the named controller ("memory", "hugetlb", …)
// can be set on this host.
func (h *Host) Has(controller string) bool {
	_, ok := h.controllers[controller]
	return ok
}

// OnlyUnified tells whether there is no hierarchy of version 1.
func (h *Host) OnlyUnified() bool { return h.Mode == V2 }

// Controllers returns the names of the controllers that Has reports, in order.
func (h *Host) Controllers() []string {
	return slices.Sorted(maps.Keys(h.controllers))
}

// SwapLimit tells whether the swap of a cgroup can be limited: it depends on
// the kernel's configuration and, on v1, on its command line.
func (h *Host) SwapLimit() bool {
	dir, ok := h.controllers["memory"]
	if !ok {
		return false
	}
	// The root of a v2 hierarchy has no limits, its first level has.
	pattern := filepath.Join(dir, "memory.memsw.limit_in_bytes")
	if h.Mode == V2 {
		pattern = filepath.Join(dir, "*", "memory.swap.max")
	}
	found, err := filepath.Glob(pattern)
	return err == nil && len(found) > 0
}

// Dir returns the directory of the cgroup at path in the hierarchy that
// carries the named controller, and false if the host lacks the controller.
// The directory need not exist.
func (h *Host) Dir(controller, path string) (string, bool) {
	root, ok := h.controllers[controller]
	if !ok {
		return "", false
	}
	return join(root, path), true
}

// Unified returns the directory of the cgroup at path in the v2 hierarchy,
// and false if the host has none.
func (h *Host) Unified(path string) (string, bool) {
	if h.unified == "" {
		return "", false
	}
	return join(h.unified, path), true
}

// Exists tells whether the cgroup at path exists in any hierarchy.
func (h *Host) Exists(path string) bool {
	for _, dir := range h.dirs(path) {
		if _, err := os.Lstat(dir); err == nil {
			return true
		}
	}
	return false
}

// Complete reports whether the cgroup exists in every hierarchy that [Host.Create] makes it in.
func (h *Host) Complete(path string) bool {
	for _, root := range h.roots() {
		if _, err := os.Lstat(join(root, path)); err != nil {
			return false
		}
	}
	return true
}

// dirs returns the directories of the cgroup at path, one per hierarchy.
func (h *Host) dirs(path string) []string {
	var dirs []string
	for _, root := range h.roots() {
		dirs = append(dirs, join(root, path))
	}
	return dirs
}

// roots returns the mount points of all hierarchies, v1 first.
func (h *Host) roots() []string {
	roots := slices.Clone(h.legacy)
	if h.unified != "" {
		roots = append(roots, h.unified)
	}
	return roots
}

// join appends a cgroup path to a mount point; the result never leaves it.
func join(root, path string) string {
	return filepath.Join(root, filepath.Clean("/"+path))
}

// checkPath refuses paths that would touch a whole hierarchy.
func checkPath(path string) error {
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("cgroup path %q: must be absolute: %w", path, errdefs.ErrInvalidArgument)
	}
	if filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("cgroup path %q: must be clean and below the root: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}
