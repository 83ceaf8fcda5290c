package metric

import (
	"strconv"

	"github.com/berth-runtime/berth/internal/stats"
)

// usage reads one number of the cgroup's usage.
func usage(number func(*stats.Container) uint64) func(*Reading, emit) {
	return func(r *Reading, emit emit) {
		if r.Usage != nil {
			emit(number(r.Usage))
		}
	}
}

var cpuFamilies = []family{
	{
		name: "container_cpu_usage_seconds_total", help: "CPU time consumed in all.", keys: []string{"cpu"}, of: both,
		read: func(r *Reading, emit emit) {
			if r.Usage != nil {
				emit(seconds(r.Usage.CPU.UsageNanos), "total")
			}
		},
	},
	{
		name: "container_cpu_user_seconds_total", help: "CPU time consumed in user mode.", of: both,
		read: usage(func(c *stats.Container) uint64 { return seconds(c.CPU.UserNanos) }),
	},
	{
		name: "container_cpu_system_seconds_total", help: "CPU time consumed in the kernel.", of: both,
		read: usage(func(c *stats.Container) uint64 { return seconds(c.CPU.SystemNanos) }),
	},
	{
		name: "container_cpu_cfs_periods_total", help: "Periods of the CPU quota that have passed.", of: both, given: hasCPU,
		read: quota(func(c *stats.Container) uint64 { return c.CPU.Periods }),
	},
	{
		name: "container_cpu_cfs_throttled_periods_total", help: "Periods in which the CPU quota was used up.", of: both, given: hasCPU,
		read: quota(func(c *stats.Container) uint64 { return c.CPU.Throttled }),
	},
	{
		name: "container_cpu_cfs_throttled_seconds_total", help: "Time for which the CPU quota stopped tasks.", of: both, given: hasCPU,
		read: quota(func(c *stats.Container) uint64 { return seconds(c.CPU.ThrottledNanos) }),
	},
}

// quota is usage, for those that have a CPU quota.
func quota(number func(*stats.Container) uint64) func(*Reading, emit) {
	return func(r *Reading, emit emit) {
		if r.Usage != nil && r.Usage.CPU.Quota > 0 {
			emit(number(r.Usage))
		}
	}
}

var memoryFamilies = []family{
	{
		name: "container_memory_usage_bytes", help: "Memory in use, page cache included.", gauge: true, of: both, given: hasMemory,
		read: usage(func(c *stats.Container) uint64 { return c.Memory.Usage }),
	},
	{
		name: "container_memory_working_set_bytes", help: "Memory in use without what can be dropped at once.", gauge: true, of: both,
		given: hasMemory, read: usage(func(c *stats.Container) uint64 { return c.Memory.WorkingSet }),
	},
	{
		name: "container_memory_max_usage_bytes", help: "The highest use of memory so far.", gauge: true, of: both,
		given: hasMemoryPeak,
		read:  usage(func(c *stats.Container) uint64 { return c.Memory.Peak }),
	},
	{
		name: "container_memory_rss", help: "Anonymous memory.", gauge: true, of: both, given: hasMemory,
		read: usage(func(c *stats.Container) uint64 { return c.Memory.RSS }),
	},
	{
		name: "container_memory_cache", help: "Page cache.", gauge: true, of: both, given: hasMemory,
		read: usage(func(c *stats.Container) uint64 { return c.Memory.Cache }),
	},
	{
		name: "container_memory_mapped_file", help: "Memory mapped from files.", gauge: true, of: container, given: hasMemory,
		read: usage(func(c *stats.Container) uint64 { return c.Memory.MappedFile }),
	},
	{
		name: "container_memory_kernel_usage", help: "Memory that the kernel uses on behalf of the container.", gauge: true, of: container,
		given: hasMemory, read: usage(func(c *stats.Container) uint64 { return c.Memory.Kernel }),
	},
	{
		name: "container_memory_swap", help: "Swap in use.", gauge: true, of: both,
		given: hasSwap,
		read: usage(func(c *stats.Container) uint64 {
			if c.Swap == nil {
				return 0 // a v2 kernel without swap keeps no account of it
			}
			return c.Swap.Usage
		}),
	},
	{
		name: "container_memory_failcnt", help: "How often the memory limit was met.", of: container, given: hasMemory,
		read: usage(func(c *stats.Container) uint64 { return c.Memory.FailCount }),
	},
	{
		name: "container_memory_failures_total", help: "Page faults: all, and those that waited for a disk.",
		keys: []string{"failure_type", "scope"}, of: container, given: hasMemory, read: readFaults,
	},
	{
		name: "container_oom_events_total", help: "Processes that the kernel killed for want of memory.", of: both, given: hasMemory,
		read: usage(func(c *stats.Container) uint64 { return c.Memory.OOMKilled }),
	},
	{
		name: "container_hugetlb_usage_bytes", help: "Huge pages in use.", keys: []string{"pagesize"}, gauge: true, of: container,
		given: hasHugetlb,
		read:  hugetlb(func(h stats.Hugetlb) uint64 { return h.Usage }),
	},
	{
		name: "container_hugetlb_max_usage_bytes", help: "The highest use of huge pages so far.", keys: []string{"pagesize"}, gauge: true,
		of: container, given: hasHugePeak,
		read: hugetlb(func(h stats.Hugetlb) uint64 { return h.Peak }),
	},
}

func readFaults(r *Reading, emit emit) {
	if r.Usage == nil {
		return
	}
	m := &r.Usage.Memory
	emit(m.OwnPageFaults, "pgfault", "container")
	emit(m.OwnMajorPageFaults, "pgmajfault", "container")
	emit(m.PageFaults, "pgfault", "hierarchy")
	emit(m.MajorPageFaults, "pgmajfault", "hierarchy")
}

func hugetlb(number func(stats.Hugetlb) uint64) func(*Reading, emit) {
	return func(r *Reading, emit emit) {
		if r.Usage == nil {
			return
		}
		for _, h := range r.Usage.Hugetlb {
			emit(number(h), h.PageSize)
		}
	}
}

// pressureFamilies are named as cAdvisor names them: tasks wait if some of them
// do, and are stalled if all are.
var pressureFamilies = []family{
	pressure("cpu", "waiting", "Time in which at least one task waited for a CPU.", cpuPressure, some),
	pressure("cpu", "stalled", "Time in which every task waited for a CPU.", cpuPressure, full),
	pressure("memory", "waiting", "Time in which at least one task waited for memory.", memoryPressure, some),
	pressure("memory", "stalled", "Time in which every task waited for memory.", memoryPressure, full),
	pressure("io", "waiting", "Time in which at least one task waited for I/O.", ioPressure, some),
	pressure("io", "stalled", "Time in which every task waited for I/O.", ioPressure, full),
}

func cpuPressure(c *stats.Container) *stats.PSI    { return c.CPU.Pressure }
func memoryPressure(c *stats.Container) *stats.PSI { return c.Memory.Pressure }
func ioPressure(c *stats.Container) *stats.PSI     { return c.IOPressure }

func some(p *stats.PSI) uint64 { return p.Some.TotalNanos }
func full(p *stats.PSI) uint64 { return p.Full.TotalNanos }

func pressure(resource, how, help string, of func(*stats.Container) *stats.PSI, line func(*stats.PSI) uint64) family {
	return family{
		name: "container_pressure_" + resource + "_" + how + "_seconds_total", help: help, of: both,
		given: hasPressure,
		read: func(r *Reading, emit emit) {
			if r.Usage == nil {
				return
			}
			if psi := of(r.Usage); psi != nil {
				emit(seconds(line(psi)))
			}
		},
	}
}

var diskFamilies = []family{
	disk("container_fs_usage_bytes", "Size of the writable layer.", func(r *Reading) (uint64, bool) {
		if r.LayerBytes == nil {
			return 0, false
		}
		return *r.LayerBytes, true
	}),
	disk("container_fs_limit_bytes", "Size of the filesystem that the writable layer is on.", func(r *Reading) (uint64, bool) {
		return r.Filesystem.Bytes, true
	}),
	disk("container_fs_inodes_total", "Inodes of the filesystem that the writable layer is on.", func(r *Reading) (uint64, bool) {
		return r.Filesystem.Inodes, true
	}),
	disk("container_fs_inodes_free", "Free inodes of the filesystem that the writable layer is on.", func(r *Reading) (uint64, bool) {
		return r.Filesystem.InodesFree, true
	}),
	traffic("container_fs_reads_total", "Reads from a disk.", func(d stats.IODevice) uint64 { return d.ReadOps }),
	traffic("container_fs_reads_bytes_total", "Bytes read from a disk.", func(d stats.IODevice) uint64 { return d.ReadBytes }),
	traffic("container_fs_writes_total", "Writes to a disk.", func(d stats.IODevice) uint64 { return d.WriteOps }),
	traffic("container_fs_writes_bytes_total", "Bytes written to a disk.", func(d stats.IODevice) uint64 { return d.WriteBytes }),
	{
		name: "container_blkio_device_usage_total", help: "Bytes that went from and to a disk, by operation.",
		keys: []string{"device", "major", "minor", "operation"}, of: container, given: hasIO,
		read: func(r *Reading, emit emit) {
			for _, d := range r.disks {
				major, minor := strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
				emit(d.ReadBytes, d.name, major, minor, "Read")
				emit(d.WriteBytes, d.name, major, minor, "Write")
				emit(d.DiscardBytes, d.name, major, minor, "Discard")
			}
		},
	},
}

// disk is a figure of the filesystem with the writable layer.
func disk(name, help string, number func(*Reading) (uint64, bool)) family {
	return family{
		name: name, help: help, keys: []string{"device"}, gauge: true, of: container,
		read: func(r *Reading, emit emit) {
			if r.Filesystem == nil {
				return
			}
			if value, ok := number(r); ok {
				emit(value, r.Filesystem.Device)
			}
		},
	}
}

// traffic is a figure of every disk that was read or written.
func traffic(name, help string, number func(stats.IODevice) uint64) family {
	return family{
		name: name, help: help, keys: []string{"device"}, of: container, given: hasIO,
		read: func(r *Reading, emit emit) {
			for _, d := range r.disks {
				emit(number(d.IODevice), d.name)
			}
		},
	}
}

// namedDisk is the traffic of a disk with the disk's name.
type namedDisk struct {
	stats.IODevice

	name string
}

// nameDisks lists the disks of a container. The one with the writable layer is
// always among them: it has zeros until it is used, so that a series begins
// with its container.
func (r *Reading) nameDisks() {
	if r.Usage == nil {
		return
	}
	own := r.Filesystem
	seen := own == nil
	for _, d := range r.Usage.IO {
		var name string
		if own != nil && d.Major == own.Disk.Major && d.Minor == own.Disk.Minor {
			seen, name = true, own.Disk.Name
		} else {
			name = stats.DeviceName(d.Major, d.Minor)
		}
		if name != "" {
			r.disks = append(r.disks, namedDisk{IODevice: d, name: name})
		}
	}
	if !seen {
		zero := stats.IODevice{Major: own.Disk.Major, Minor: own.Disk.Minor}
		r.disks = append(r.disks, namedDisk{IODevice: zero, name: own.Disk.Name})
	}
}
