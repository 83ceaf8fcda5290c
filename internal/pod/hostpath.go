package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/warning"
)

// HostPaths says which missing sources of mounts are created as directories. The zero value creates none.
type HostPaths struct {
	Create bool
	// Except are directories that are never created, nor anything below them.
	Except []string
}

// allows tells whether a missing path may be created.
func (h HostPaths) allows(path string) bool {
	if !h.Create {
		return false
	}
	for _, except := range h.Except {
		except = filepath.Clean(except)
		if path == except || strings.HasPrefix(path, strings.TrimSuffix(except, "/")+"/") {
			return false
		}
	}
	return true
}

// createHostPaths creates the missing sources of the container's mounts, where that is allowed. The others are refused when
// the mounts are made.
func (c *container) createHostPaths(mounts []*runtimeapi.Mount) error {
	var created warning.List
	for i, m := range mounts {
		path := filepath.Clean(m.GetHostPath())
		if m.GetImage() != nil || m.GetHostPath() == "" {
			continue
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		field := fmt.Sprintf("mounts[%d].host_path", i)
		target, err := realPath(path)
		if err != nil {
			return fmt.Errorf("%s %q: %w: %w", field, path, err, errdefs.ErrInvalidArgument)
		}
		if !c.engine.opts.HostPaths.allows(path) || !c.engine.opts.HostPaths.allows(target) {
			continue
		}
		if err := os.MkdirAll(target, 0o755); err != nil { //nolint:gosec // as other runtimes do: the container's user must get in
			return fmt.Errorf("%s %q: create the missing directory: %w: %w", field, path, err, errdefs.ErrInvalidArgument)
		}
		created.Add(field, path, "was missing and has been created as a directory")
	}
	c.warn(created)
	return nil
}

// realPath follows the links in what there is of a path, and what they lead to if that is missing.
func realPath(path string) (string, error) { return securejoin.SecureJoin("/", path) }

// makeWorkingDir creates the working directory of a container where it is a link that leads to nothing. OCI runtimes create
// one that is missing, but not through links.
func makeWorkingDir(rootfs, cwd string, as owner) error {
	target, err := securejoin.SecureJoin(rootfs, cwd)
	if err != nil || target == filepath.Join(rootfs, cwd) {
		return err
	}
	if err := makeIn(rootfs, target, as); err != nil {
		return fmt.Errorf("create the working directory %s: %w", cwd, err)
	}
	return nil
}

// makeIn creates a directory below a root file system, by its path on the host in which all links are followed, unless
// something is there already.
func makeIn(rootfs, target string, as owner) error {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // it holds no data
	name, err := filepath.Rel(rootfs, target)
	if err != nil {
		return err
	}
	if _, err := root.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		return nil // if it is no directory the OCI runtime says so
	}
	if err := root.MkdirAll(name, 0o755); err != nil {
		return err
	}
	return root.Lchown(name, int(as.uid), int(as.gid))
}
