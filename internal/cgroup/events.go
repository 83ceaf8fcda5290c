package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
)

// OOMKills returns how many processes of the cgroup at path, and of cgroups
// below it, the kernel has killed for want of memory. If the cgroup does not
// exist the error is of kind errdefs.ErrNotFound. On a host without memory
// controller the count is 0.
func (h *Host) OOMKills(path string) (uint64, error) {
	if err := checkPath(path); err != nil {
		return 0, err
	}
	dir, ok := h.Dir("memory", path)
	if !ok {
		return 0, nil
	}
	kills, err := h.oomKills(dir)
	if gone(err) {
		return 0, fmt.Errorf("count OOM kills of cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("count OOM kills of cgroup %s: %w", path, err)
	}
	return kills, nil
}

// oomKills reads the counter of one directory. The v2 counter contains that
// of the children; v1 counts at the victim's own cgroup only.
func (h *Host) oomKills(dir string) (uint64, error) {
	if h.Mode == V2 {
		return readKey(filepath.Join(dir, "memory.events"), "oom_kill")
	}
	total, err := readKey(filepath.Join(dir, "memory.oom_control"), "oom_kill")
	if err != nil {
		return 0, err
	}
	children, err := filepath.Glob(filepath.Join(dir, "*", "memory.oom_control"))
	if err != nil {
		return 0, err
	}
	for _, file := range children {
		count, err := h.oomKills(filepath.Dir(file))
		if err != nil && !gone(err) {
			return 0, err
		}
		total += count
	}
	return total, nil
}

// Limits are the limits that the kernel enforces for a cgroup. A pointer is
// nil if there is no limit or no controller for it.
type Limits struct {
	// MemoryBytes limits memory, without swap.
	MemoryBytes *uint64
	// SwapBytes limits swap alone; on v1 it is what remains of the limit of
	// memory and swap together.
	SwapBytes *uint64
	// CPUQuota is the CPU time in microseconds allowed per CPUPeriod.
	CPUQuota *uint64
	// CPUPeriod is in microseconds.
	CPUPeriod *uint64
	// CPUShares is the v1 weight, CPUWeight the v2 weight; one of them is set.
	CPUShares, CPUWeight *uint64
	// Pids limits the number of tasks.
	Pids *uint64
}

// noLimit is the least value by which v1 says "no limit": the biggest
// multiple of the page size (up to 64 KiB) that an int64 holds.
const noLimit = 1<<63 - 1<<16

// Limits reads what limits apply to the cgroup at path. If it does not exist
// the error is of kind errdefs.ErrNotFound.
func (h *Host) Limits(path string) (Limits, error) {
	if err := checkPath(path); err != nil {
		return Limits{}, err
	}
	if !h.Exists(path) {
		return Limits{}, fmt.Errorf("read limits of cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	reader := limitReader{host: h, path: path}
	limits := Limits{Pids: reader.number("pids", "pids.max")}
	if h.Mode == V2 {
		limits.MemoryBytes = reader.number("memory", "memory.max")
		limits.SwapBytes = reader.number("memory", "memory.swap.max")
		limits.CPUWeight = reader.number("cpu", "cpu.weight")
		limits.CPUQuota, limits.CPUPeriod = reader.cpuMax()
	} else {
		limits.MemoryBytes = reader.number("memory", "memory.limit_in_bytes")
		limits.SwapBytes = reader.number("memory", "memory.memsw.limit_in_bytes")
		if limits.SwapBytes != nil && limits.MemoryBytes != nil {
			*limits.SwapBytes -= min(*limits.MemoryBytes, *limits.SwapBytes)
		}
		limits.CPUShares = reader.number("cpu", "cpu.shares")
		limits.CPUQuota = reader.number("cpu", "cpu.cfs_quota_us")
		limits.CPUPeriod = reader.number("cpu", "cpu.cfs_period_us")
	}
	if reader.err != nil {
		return Limits{}, fmt.Errorf("read limits of cgroup %s: %w", path, reader.err)
	}
	return limits, nil
}

// limitReader reads control files and keeps the first error.
type limitReader struct {
	host *Host
	path string
	err  error
}

// value returns the text of a control file, or "" when there is none.
func (r *limitReader) value(controller, file string) string {
	dir, ok := r.host.Dir(controller, r.path)
	if !ok || r.err != nil {
		return ""
	}
	value, err := readString(filepath.Join(LimitDir(dir), file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.err = err
	}
	return value
}

func (r *limitReader) number(controller, file string) *uint64 {
	return r.parse(r.value(controller, file))
}

func (r *limitReader) cpuMax() (quota, period *uint64) {
	var first, second string
	if value := r.value("cpu", "cpu.max"); value != "" {
		if _, err := fmt.Sscan(value, &first, &second); err != nil {
			r.err = fmt.Errorf("cpu.max %q: %w", value, err)
			return nil, nil
		}
	}
	return r.parse(first), r.parse(second)
}

// parse understands numbers and the three ways of saying "no limit".
func (r *limitReader) parse(value string) *uint64 {
	if value == "" || value == "max" || value == "-1" {
		return nil
	}
	number, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		r.err = err
		return nil
	}
	if number >= noLimit {
		return nil
	}
	return &number
}
