package hostcheck

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/namespace/overlay"
)

const nameUserNamespaces = "user namespaces"

// userNamespaces makes one, and mounts an overlay whose layers have its mapping
// where images are kept. Each OCI runtime is tried for itself.
func (f *facts) userNamespaces(c *config.Config, root bool) {
	if !root {
		f.needsRoot(areaKernel, nameUserNamespaces)
		return
	}
	base := existing(c.Root)
	if err := overlay.TryMapped(filepath.Join(base, fmt.Sprintf(".berth-check-idmap-%d", os.Getpid()))); err != nil {
		f.warn(areaKernel, nameUserNamespaces, err.Error(),
			"for pods with user namespaces, use Linux 5.19 or newer, a file system that can be idmapped (ext4, xfs, btrfs), "+
				"and a user.max_user_namespaces above 0")
		return
	}
	f.ok(areaKernel, nameUserNamespaces, "work, with idmapped layers of images in "+base)
}
