package hostcheck

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/config"
)

const (
	areaCgroup  = "cgroup"
	areaStorage = "storage"

	// Kubelet begins to throw out pods and images at 15 % of free space or
	// inodes; below 5 % pulls fail.
	lowPercent  = 15
	fullPercent = 5
)

func (f *facts) cgroups(c *config.Config) {
	host, err := cgroup.Detect()
	if err != nil {
		f.fail(areaCgroup, "hierarchy", err.Error(), "mount one with: mount -t cgroup2 none /sys/fs/cgroup")
		return
	}
	switch host.Mode {
	case cgroup.V2:
		f.ok(areaCgroup, "hierarchy", "v2")
	default:
		f.warn(areaCgroup, "hierarchy", host.Mode.String(),
			"works; kubelet of 1.35 and later wants v2 (failCgroupV1), and pressure information need it: boot with systemd.unified_cgroup_hierarchy=1")
	}
	f.controllers(host)
	if host.SwapLimit() {
		f.ok(areaCgroup, "swap", "can be limited")
	} else {
		f.info(areaCgroup, "swap", "cannot be limited; kubelet's swap limits have no effect")
	}
	f.driver(c)
}

func (f *facts) controllers(host *cgroup.Host) {
	io := "io"
	if host.Mode != cgroup.V2 {
		io = "blkio"
	}
	var needed, wanted []string
	for _, name := range []string{"cpu", "memory", "pids"} {
		if !host.Has(name) {
			needed = append(needed, name)
		}
	}
	for _, name := range []string{"cpuset", io, "hugetlb"} {
		if !host.Has(name) {
			wanted = append(wanted, name)
		}
	}
	have := strings.Join(host.Controllers(), ", ")
	switch {
	case len(needed) > 0:
		f.fail(areaCgroup, "controllers", fmt.Sprintf("%s; missing: %s", have, strings.Join(needed, ", ")),
			"enable them on the kernel's command line (cgroup_enable=memory), or delegate them to the service")
	case len(wanted) > 0:
		f.warn(areaCgroup, "controllers", fmt.Sprintf("%s; missing: %s", have, strings.Join(wanted, ", ")),
			"only pods that set such limits need them")
	default:
		f.ok(areaCgroup, "controllers", have)
	}
}

// driver says who makes cgroups, which must agree with kubelet.
func (f *facts) driver(c *config.Config) {
	wanted := cgroup.ChooseDriver(c.Runtime.CgroupDriver)
	here := cgroup.ChooseDriver(config.CgroupDriverAuto)
	switch {
	case wanted == here:
		f.ok(areaCgroup, "driver", wanted.String())
	case wanted == cgroup.Systemd:
		f.fail(areaCgroup, "driver", "systemd is configured, but it or its message bus does not run here",
			`set runtime.cgroup_driver = "auto", or install dbus`)
	default:
		f.warn(areaCgroup, "driver", "cgroupfs, on a host that systemd manages",
			`systemd and cgroupfs conflict in one hierarchy: set runtime.cgroup_driver = "auto", and kubelet's cgroupDriver to systemd`)
	}
}

func (f *facts) storage(c *config.Config) {
	f.space("root", c.Root)
	f.space("state", c.State)
	var fs unix.Statfs_t
	if err := unix.Statfs(existing(c.State), &fs); err == nil && fs.Type != unix.TMPFS_MAGIC {
		f.warn(areaStorage, "state", existing(c.State)+" is not on a tmpfs",
			"after a reboot, state that is no more true is only recognised file by file; mount a tmpfs there")
	}
}

func (f *facts) space(name, dir string) {
	base := existing(dir)
	var fs unix.Statfs_t
	if err := unix.Statfs(base, &fs); err != nil {
		f.fail(areaStorage, name, fmt.Sprintf("%s: %v", base, err), "mount it, or set "+name+" to another directory")
		return
	}
	block := uint64(fs.Bsize) //nolint:gosec // sizes of blocks are positive
	free, total := fs.Bavail*block, fs.Blocks*block
	found := fmt.Sprintf("%s: %.1f GB of %.1f GB free", base, gigabytes(free), gigabytes(total))
	percent := share(free, total)
	if fs.Files > 0 {
		percent = min(percent, share(fs.Ffree, fs.Files))
		found += fmt.Sprintf(", %d%% of inodes", share(fs.Ffree, fs.Files))
	}
	remedy := "see what uses it with: berth images; df -h; df -i. Free images with: berth rmi"
	switch {
	case percent < fullPercent:
		f.fail(areaStorage, name, found, remedy)
	case percent < lowPercent:
		f.warn(areaStorage, name, found, remedy)
	default:
		f.ok(areaStorage, name, found)
	}
}

func gigabytes(bytes uint64) float64 { return float64(bytes) / 1e9 }

func share(part, whole uint64) uint64 {
	if whole == 0 {
		return 100
	}
	return uint64(float64(part) / float64(whole) * 100)
}
