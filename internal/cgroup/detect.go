package cgroup

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
)

// knownControllers are the names that can appear as a v1 mount option beside
// plain mount flags such as "rw".
var knownControllers = []string{
	"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb",
	"memory", "misc", "net_cls", "net_prio", "perf_event", "pids", "rdma",
}

// Detect finds the cgroup hierarchies of this machine. The error says what is
// missing when there are none.
func Detect() (*Host, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	defer file.Close() //nolint:errcheck // opened for reading only
	return Parse(file)
}

// Parse finds the cgroup hierarchies in a mount table of the format of
// /proc/self/mountinfo.
func Parse(mounts io.Reader) (*Host, error) {
	infos, err := mountinfo.GetMountsFromReader(mounts, mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	host := &Host{controllers: map[string]string{}}
	for _, info := range infos {
		if info.FSType == "cgroup2" {
			if host.unified == "" {
				host.unified = info.Mountpoint
			}
			continue
		}
		host.addLegacy(info)
	}
	switch {
	case len(host.controllers) > 0 && host.unified != "":
		host.Mode = Hybrid
	case len(host.controllers) > 0:
		host.Mode = V1
	case host.unified != "":
		host.Mode = V2
		host.legacy = nil
		if err := host.addUnified(); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("find cgroups: no cgroup hierarchy is mounted; mount one: "+
			"mount -t cgroup2 cgroup2 /sys/fs/cgroup: %w", errdefs.ErrFailedPrecondition)
	}
	return host, nil
}

// addLegacy records a v1 mount. The first mount of a hierarchy wins: later ones
// are made for a container, or by CRIU for as long as it makes a checkpoint.
func (h *Host) addLegacy(info *mountinfo.Info) {
	used := false
	for option := range strings.SplitSeq(info.VFSOptions, ",") {
		if option == "name=systemd" && !h.named {
			h.named, used = true, true
		}
		if !slices.Contains(knownControllers, option) {
			continue
		}
		if _, taken := h.controllers[option]; !taken {
			h.controllers[option] = info.Mountpoint
			used = true
		}
	}
	if used && !slices.Contains(h.legacy, info.Mountpoint) {
		h.legacy = append(h.legacy, info.Mountpoint)
	}
}

// addUnified records the controllers that the v2 root offers. The device
// controller of v2 is a BPF program and always there; freezing is built in.
func (h *Host) addUnified() error {
	data, err := os.ReadFile(join(h.unified, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("list cgroup v2 controllers: %w", err)
	}
	for name := range strings.FieldsSeq(string(data)) {
		h.controllers[name] = h.unified
	}
	h.controllers["devices"] = h.unified
	h.controllers["freezer"] = h.unified
	return nil
}
