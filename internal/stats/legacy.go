package stats

import (
	"cmp"
	"slices"
	"strings"
)

// readLegacy reads the files of cgroup v1. dir gives the directory of a
// controller, "" if there is none.
func readLegacy(r *reader, c *Container, dir func(string) string) {
	account := dir("cpuacct")
	c.CPU.UsageNanos = r.number(account, "cpuacct.usage")
	r.legacyMemory(c, dir("memory"))
	if r.brief {
		return
	}
	c.CPU.UserNanos = r.number(account, "cpuacct.usage_user")
	c.CPU.SystemNanos = r.number(account, "cpuacct.usage_sys")
	cpu := dir("cpu")
	throttle := r.table(cpu, "cpu.stat")
	c.CPU.Periods = throttle["nr_periods"]
	c.CPU.Throttled = throttle["nr_throttled"]
	c.CPU.ThrottledNanos = throttle["throttled_time"]
	c.CPU.Quota = r.number(cpu, "cpu.cfs_quota_us")
	c.CPU.Period = r.number(cpu, "cpu.cfs_period_us")
	c.CPU.Shares = r.number(cpu, "cpu.shares")
	r.legacyMemoryDetails(&c.Memory, dir("memory"))
	c.IO = r.legacyIO(dir("blkio"))
}

// legacyMemory takes the totals of memory.stat, which contain the cgroups
// below, and the limits there, which heed those above.
func (r *reader) legacyMemory(c *Container, dir string) {
	if dir == "" {
		return
	}
	stat := r.table(dir, "memory.stat")
	usage := r.number(dir, "memory.usage_in_bytes")
	c.Memory = Memory{
		Usage:           usage,
		WorkingSet:      less(usage, stat["total_inactive_file"]),
		RSS:             stat["total_rss"],
		Limit:           limit(stat["hierarchical_memory_limit"]),
		Cache:           stat["total_cache"],
		MappedFile:      stat["total_mapped_file"],
		PageFaults:      stat["total_pgfault"],
		MajorPageFaults: stat["total_pgmajfault"],
		OwnPageFaults:   stat["pgfault"], OwnMajorPageFaults: stat["pgmajfault"],
	}
	c.Memory.setAvailable()
	both, accounted := stat["hierarchical_memsw_limit"]
	if !accounted {
		return
	}
	c.Swap = &Swap{Usage: stat["total_swap"]}
	if both = limit(both); both > 0 {
		c.Swap.Limited = true
		c.Swap.Limit = less(both, c.Memory.Limit)
		c.Swap.Available = less(c.Swap.Limit, c.Swap.Usage)
	}
}

func (r *reader) legacyMemoryDetails(m *Memory, dir string) {
	m.Peak = r.number(dir, "memory.max_usage_in_bytes")
	m.Kernel = r.number(dir, "memory.kmem.usage_in_bytes")
	m.FailCount = r.number(dir, "memory.failcnt")
	m.OOMKilled = r.table(dir, "memory.oom_control")["oom_kill"]
	m.OOMEvents = m.OOMKilled
}

// setAvailable computes what is left of the limit.
func (m *Memory) setAvailable() {
	if m.Limit > 0 {
		m.Available = less(m.Limit, m.WorkingSet)
	}
}

// legacyIO reads the counters that every I/O scheduler keeps.
func (r *reader) legacyIO(dir string) []IODevice {
	devices := ioTable{}
	for line := range strings.Lines(r.text(dir, "blkio.throttle.io_service_bytes_recursive")) {
		r.legacyIOLine(devices, line, func(d *IODevice) map[string]*uint64 {
			return map[string]*uint64{"Read": &d.ReadBytes, "Write": &d.WriteBytes, "Discard": &d.DiscardBytes}
		})
	}
	for line := range strings.Lines(r.text(dir, "blkio.throttle.io_serviced_recursive")) {
		r.legacyIOLine(devices, line, func(d *IODevice) map[string]*uint64 {
			return map[string]*uint64{"Read": &d.ReadOps, "Write": &d.WriteOps, "Discard": &d.DiscardOps}
		})
	}
	return devices.list()
}

// legacyIOLine reads a line "8:0 Read 4096"; the one of the total has other
// words and is left out.
func (r *reader) legacyIOLine(devices ioTable, line string, fields func(*IODevice) map[string]*uint64) {
	words := strings.Fields(line)
	if len(words) != 3 {
		return
	}
	if device := devices.at(words[0]); device != nil {
		if target, ok := fields(device)[words[1]]; ok {
			*target = r.parse("blkio", words[2])
		}
	}
}

// ioTable collects devices by their number in the form "8:0".
type ioTable map[string]*IODevice

// at returns the entry of a device, nil if number is not the number of one.
func (t ioTable) at(number string) *IODevice {
	if device, ok := t[number]; ok {
		return device
	}
	var r reader
	major, minor, ok := strings.Cut(number, ":")
	device := &IODevice{Major: r.parse("", major), Minor: r.parse("", minor)}
	if !ok || r.err != nil {
		return nil
	}
	t[number] = device
	return device
}

// list returns the devices in ascending order.
func (t ioTable) list() []IODevice {
	var devices []IODevice
	for _, device := range t {
		devices = append(devices, *device)
	}
	slices.SortFunc(devices, func(a, b IODevice) int {
		if a.Major != b.Major {
			return cmp.Compare(a.Major, b.Major)
		}
		return cmp.Compare(a.Minor, b.Minor)
	})
	return devices
}
