package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// gone tells whether err means that a cgroup does not exist any more. A file
// that was opened before its cgroup went answers reads with ENODEV.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENAMETOOLONG)
}

// readString returns the content of a control file without white space
// around it.
func readString(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(data)), nil
}

// writeString writes a value to a control file in a single write, as the
// kernel wants it. It never creates a file.
func writeString(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, fileMode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// readPIDs returns the processes of one cgroup directory. Those outside our
// PID namespace are listed as 0 by the kernel and left out.
func readPIDs(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range bytes.FieldsSeq(data) {
		pid, err := strconv.Atoi(string(line))
		if err != nil {
			return nil, fmt.Errorf("%s/cgroup.procs: %w", dir, err)
		}
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// readKey returns the number that follows key in a flat keyed file such as
// memory.events, 0 if the key is not there.
func readKey(file, key string) (uint64, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || name != key {
			continue
		}
		number, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %s: %w", file, key, err)
		}
		return number, nil
	}
	return 0, nil
}

func sortedKeys(set map[int]bool) []int {
	return slices.Sorted(maps.Keys(set))
}
