// Package cdi gives containers devices by name: the Container Device Interface,
// in which a vendor describes in a spec file what a container needs to use a
// device.
package cdi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// maxBroken bounds how many broken spec files an error tells of.
const maxBroken = 8

// Devices are those that the spec files in some directories describe. Its
// methods may be called at the same time from anywhere.
type Devices struct {
	dirs []string
	// cache is read again at each use: that is rare, and a device plugin
	// writes its file just before it names the device.
	cache *cdi.Cache
}

// Open returns the devices in dirs, the later of which have precedence. They
// need not exist.
func Open(dirs []string) (*Devices, error) {
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return nil, fmt.Errorf("open device specs in %s: %w", strings.Join(dirs, ", "), err)
	}
	return &Devices{dirs: dirs, cache: cache}, nil
}

// Inject changes a spec so that its container has the devices of these fully
// qualified names ("vendor.com/class=name"). The error is ErrInvalidArgument if
// one is not known, and tells of files that may have it but cannot be read.
// After an error the spec must not be used.
func (d *Devices) Inject(s *specs.Spec, names []string) error {
	// What this returns is about all files, also those that no request needs now.
	broken := d.cache.Refresh() != nil
	unknown, err := d.cache.InjectDevices(s, names...)
	switch {
	case len(unknown) > 0:
		why := ""
		if broken {
			why = d.broken()
		}
		return fmt.Errorf("device %q is not described in %s%s: %w",
			strings.Join(unknown, ", "), strings.Join(d.dirs, ", "), why, errdefs.ErrInvalidArgument)
	case err != nil:
		return fmt.Errorf("add device %q: %w: %w", strings.Join(names, ", "), err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// broken tells which files were not understood.
func (d *Devices) broken() string {
	failures := d.cache.GetErrors()
	files := slices.Sorted(maps.Keys(failures))
	var texts []string
	for _, file := range files[:min(len(files), maxBroken)] {
		texts = append(texts, fmt.Sprintf("%s: %v", file, failures[file][0]))
	}
	if len(files) > maxBroken {
		texts = append(texts, fmt.Sprintf("and %d more", len(files)-maxBroken))
	}
	return "; spec files that are broken: " + strings.Join(texts, "; ")
}
