package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// hierarchies lists the mounted control group hierarchies.
func hierarchies() ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("list control group hierarchies: %w", err)
	}
	var dirs []string
	for _, m := range mounts {
		dirs = append(dirs, m.Mountpoint)
	}
	return dirs, nil
}

// makeCgroups makes the parent of kubelet's control groups in each hierarchy.
func (c *cluster) makeCgroups() error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := filepath.Join(root, c.cgroup)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A new cpuset of version 1 has no CPUs and no memory nodes.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(root, name))
			if errors.Is(err, fs.ErrNotExist) || len(strings.TrimSpace(string(value))) == 0 {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), value, 0o600)
			}
			if err != nil {
				return fmt.Errorf("set %s of %s: %w", name, dir, err)
			}
		}
	}
	return nil
}

// removeCgroups removes kubelet's control groups, which must not have processes any more.
func (c *cluster) removeCgroups() error {
	if c.cgroup == "" {
		return nil
	}
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	var problems []error
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(filepath.Join(root, c.cgroup), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
		for _, dir := range slices.Backward(dirs) {
			problems = append(problems, removeCgroup(dir))
		}
	}
	return errors.Join(problems...)
}

// removeCgroup removes an empty control group. The kernel refuses for a moment after its last process.
func removeCgroup(dir string) error {
	var err error
	for range 20 {
		if err = unix.Rmdir(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("remove %s: %w", dir, err)
}

// unmountVolumes unmounts the volumes that kubelet had no time to unmount before it was stopped.
func (c *cluster) unmountVolumes() error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(c.file("kubelet")))
	if err != nil {
		return fmt.Errorf("list kubelet's mounts: %w", err)
	}
	var problems []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, 0); err != nil {
			problems = append(problems, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(problems...)
}
