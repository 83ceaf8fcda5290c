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
// that they get in its parent. A period in microseconds, if not 0, is that of a
// later quota.
func (h *Host) LiftCPUQuota(path string, period int64) error {
	values := [][2]string{{"cpu.cfs_quota_us", "-1"}, {"cpu.cfs_period_us", strconv.FormatInt(period, 10)}}
	if h.Mode == V2 {
		values = [][2]string{{"cpu.max", "max"}, {"cpu.max", fmt.Sprintf("max %d", period)}}
	}
	if period == 0 {
		values = values[:1]
	}
	for _, v := range values {
		if err := h.lift("cpu", path, v[0], v[1]); err != nil {
			return fmt.Errorf("lift CPU quota of cgroup %s: %w", path, err)
		}
	}
	return nil
}

// LiftTaskLimit lets the cgroup at path have all the tasks that its parent may.
func (h *Host) LiftTaskLimit(path string) error {
	if err := h.lift("pids", path, "pids.max", "max"); err != nil {
		return fmt.Errorf("lift limit on tasks of cgroup %s: %w", path, err)
	}
	return nil
}

// lift writes a value that is no limit. Without the controller there is none.
func (h *Host) lift(controller, path, file, value string) error {
	dir, ok := h.Dir(controller, path)
	if !ok {
		return nil
	}
	return writeString(filepath.Join(LimitDir(dir), file), value)
}
