package cgroup

import (
	"errors"
	"fmt"
	"path/filepath"
)

// Kept are control files with what they held.
type Kept []keptFile

type keptFile struct{ file, value string }

// Keep reads those limits of the cgroup at path that no value of an OCI
// runtime's update lifts again: CPUs, memory nodes, and huge pages of the given
// sizes. What the host has not is left out.
func (h *Host) Keep(path string, hugepages ...string) (Kept, error) {
	var kept Kept
	add := func(controller, name string) error {
		dir, ok := h.Dir(controller, path)
		if !ok {
			return nil
		}
		file := filepath.Join(LimitDir(dir), name)
		value, err := readString(file)
		if gone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read limits of cgroup %s: %w", path, err)
		}
		kept = append(kept, keptFile{file, value})
		return nil
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		if err := add("cpuset", name); err != nil {
			return nil, err
		}
	}
	for _, size := range hugepages {
		if err := add("hugetlb", h.hugepageFile(size)); err != nil {
			return nil, err
		}
	}
	return kept, nil
}

// Restore writes back what has changed. A cgroup that is gone has no limits.
func (k Kept) Restore() error {
	var errs []error
	for _, f := range k {
		now, err := readString(f.file)
		if err == nil && now != f.value {
			// The line end makes a write of an empty value, which v2 takes for none.
			err = writeString(f.file, f.value+"\n")
		}
		if err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("put back %s: %w", f.file, err))
		}
	}
	return errors.Join(errs...)
}

// hugepageFile is the control file for pages of one size.
func (h *Host) hugepageFile(size string) string {
	if h.Mode == V2 {
		return "hugetlb." + size + ".max"
	}
	return "hugetlb." + size + ".limit_in_bytes"
}
