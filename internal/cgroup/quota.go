package cgroup

import (
	"fmt"
	"path/filepath"
	"strconv"
)

// LimitHugepages limits how many bytes of huge pages of one size, such as
// "2MB", the processes of the cgroup at path may have.
func (h *Host) LimitHugepages(path, size string, bytes uint64) error {
	dir, ok := h.Dir("hugetlb", path)
	if !ok {
		return nil // without the controller none of a size can be asked for
	}
	file := "hugetlb." + size + ".limit_in_bytes"
	if h.Mode == V2 {
		file = "hugetlb." + size + ".max"
	}
	if err := writeString(filepath.Join(dir, file), strconv.FormatUint(bytes, 10)); err != nil {
		return fmt.Errorf("limit huge pages of %s in cgroup %s: %w", size, path, err)
	}
	return nil
}

// LiftCPUQuota lets the processes of the cgroup at path use all the CPU time
// that they get in its parent.
func (h *Host) LiftCPUQuota(path string) error {
	dir, ok := h.Dir("cpu", path)
	if !ok {
		return nil // without the controller there is no quota
	}
	file, value := "cpu.cfs_quota_us", "-1"
	if h.Mode == V2 {
		file, value = "cpu.max", "max"
	}
	if err := writeString(filepath.Join(dir, file), value); err != nil {
		return fmt.Errorf("lift CPU quota of cgroup %s: %w", path, err)
	}
	return nil
}
