package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// crunGroup is the cgroup beneath its scope into which crun puts a container that
// systemd manages, and in which it sets the limits: systemd would set those of the
// scope back.
const crunGroup = "container"

// LimitDir is where the limits of the container are whose cgroup is dir.
func LimitDir(dir string) string {
	inner := filepath.Join(dir, crunGroup)
	if strings.HasSuffix(dir, ".scope") && exists(inner) {
		return inner
	}
	return dir
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// LimitHugepages limits how many bytes of huge pages of one size, such as
// "2MB", the processes of the cgroup at path may have.
func (h *Host) LimitHugepages(path, size string, bytes uint64) error {
	dir, ok := h.Dir("hugetlb", path)
	if !ok {
		return nil // without the controller none of a size can be asked for
	}
	if err := writeString(filepath.Join(LimitDir(dir), h.hugepageFile(size)), strconv.FormatUint(bytes, 10)); err != nil {
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
	if err := writeString(filepath.Join(LimitDir(dir), file), value); err != nil {
		return fmt.Errorf("lift CPU quota of cgroup %s: %w", path, err)
	}
	return nil
}
