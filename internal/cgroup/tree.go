package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// removeAttempts and removePause bound the wait for a cgroup that is busy
	// although no process is listed in it: a dying task leaves its cgroup a
	// moment after its parent could have seen the exit, and v1 has no event
	// for that. So does a thread of this process that ends, and it stays behind
	// when the process moves to another cgroup.
	removeAttempts = 50
	removePause    = 10 * time.Millisecond

	dirMode  = 0o755
	fileMode = 0o644
)

// Create makes the cgroup at path, with its parents, in every hierarchy. A
// cgroup that exists is left as it is, so Create may be repeated. On nil,
// processes can be moved into the cgroup, and limits of every controller that
// Has reports can be set on its children.
func (h *Host) Create(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	for _, root := range h.roots() {
		if err := h.createIn(root, path); err != nil {
			return fmt.Errorf("create cgroup %s: %w", path, err)
		}
	}
	return nil
}

// createIn makes path below one mount point, one level at a time, because a
// new level must be set up before the next one is made.
func (h *Host) createIn(root, path string) error {
	dir := root
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, name)
		if h.Mode == V2 {
			if err := enableControllers(parent, h); err != nil {
				return err
			}
		}
		if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if cpuset, ok := h.controllers["cpuset"]; ok && h.Mode != V2 && cpuset == root {
			if err := inheritCpuset(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritCpuset copies the CPUs and memory nodes of a v1 cpuset to a child
// that has none yet: no process can join an empty cpuset.
func inheritCpuset(parent, child string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := readString(filepath.Join(child, file))
		if err != nil {
			return err
		}
		if have != "" {
			continue
		}
		want, err := readString(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := writeString(filepath.Join(child, file), want); err != nil {
			return err
		}
	}
	return nil
}

// enableControllers passes every controller of a v2 cgroup on to its children.
func enableControllers(dir string, h *Host) error {
	enabled, err := readString(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	offered, err := readString(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for name := range strings.FieldsSeq(enabled) {
		have[name] = true
	}
	for name := range strings.FieldsSeq(offered) {
		if have[name] || !h.Has(name) {
			continue
		}
		if err := writeString(filepath.Join(dir, "cgroup.subtree_control"), "+"+name); err != nil {
			return fmt.Errorf("pass controller %s on to children: %w", name, err)
		}
	}
	return nil
}

// Remove removes the cgroup at path and all cgroups below it from every
// hierarchy. One that does not exist is no error. If a process is still in
// one of them the error is of kind errdefs.ErrFailedPrecondition, and the
// empty cgroups below are gone already.
func (h *Host) Remove(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	var errs []error
	for _, dir := range h.dirs(path) {
		if err := removeTree(dir); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

// removeTree removes a cgroup directory, deepest first. The control files in
// it are not removed one by one: rmdir of a cgroup takes them along.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return removeOne(dir)
}

func removeOne(dir string) error {
	for range removeAttempts {
		err := syscall.Rmdir(dir)
		if err == nil || gone(err) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) {
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		pids, err := readPIDs(dir)
		if err != nil && !gone(err) {
			return err
		}
		if slices.ContainsFunc(pids, func(pid int) bool { return pid != os.Getpid() }) {
			return fmt.Errorf("%s: still has processes %v: %w", dir, pids, errdefs.ErrFailedPrecondition)
		}
		time.Sleep(removePause)
	}
	return fmt.Errorf("%s: stays busy without a process: %w", dir, errdefs.ErrFailedPrecondition)
}

// AddProc moves the process into the cgroup at path in every hierarchy.
func (h *Host) AddProc(path string, pid int) error {
	if err := checkPath(path); err != nil {
		return err
	}
	for _, dir := range h.dirs(path) {
		if err := writeString(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("add process %d to cgroup %s: %w", pid, path, err)
		}
	}
	return nil
}

// Procs returns the processes of the cgroup at path in ascending order, with
// those of the cgroups below it if recursive. A process that is in the cgroup
// in any one hierarchy counts. If no hierarchy has the cgroup the error is of
// kind errdefs.ErrNotFound.
func (h *Host) Procs(path string, recursive bool) ([]int, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	set := map[int]bool{}
	found := false
	for _, dir := range h.dirs(path) {
		err := collectPIDs(dir, recursive, set)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
		}
		found = true
	}
	if !found {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	return sortedKeys(set), nil
}

// collectPIDs adds the processes of one cgroup directory to set. Only the
// absence of dir itself is an error; children may go at any time.
func collectPIDs(dir string, recursive bool, set map[int]bool) error {
	pids, err := readPIDs(dir)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		set[pid] = true
	}
	if !recursive {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		err := collectPIDs(filepath.Join(dir, entry.Name()), true, set)
		if err != nil && !gone(err) {
			return err
		}
	}
	return nil
}
