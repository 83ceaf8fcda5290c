package stats

import (
	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/containerd/errdefs"
)

// Read reads the usage of the cgroup at path. If the cgroup does not exist
// the error is of kind errdefs.ErrNotFound.
func Read(_ *cgroup.Host, _ string) (Container, error) {
	return Container{}, errdefs.ErrNotImplemented
}
