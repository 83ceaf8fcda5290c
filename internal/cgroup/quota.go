package cgroup

import (
	"fmt"
	"path/filepath"
)

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
