package ociruntime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// RemoveScratch removes a directory that was a command's scratch, whatever a
// runtime that was killed has left in it. One that is gone is no error.
func RemoveScratch(dir string) error {
	// crun and runc bind their own program to a file for an instant, the one in the scratch, the other beside the state.
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !strings.HasPrefix(entry.Name(), "crun.") && !strings.HasPrefix(entry.Name(), "runc.") {
			return nil
		}
		if err == nil {
			err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // it is no mount point (any more)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("unmount what a runtime left: %w", err)
	}
	return os.RemoveAll(dir)
}

// RemoveState removes the state files of a container that a runtime does not know,
// or cannot read any more: a directory of its name, or gVisor's files.
func RemoveState(h Handler, id string) error {
	files, err := filepath.Glob(filepath.Join(h.Root, id+"_sandbox:*"))
	if err != nil {
		return fmt.Errorf("find state of container %s: %w", id, err)
	}
	var errs []error
	for _, file := range append(files, filepath.Join(h.Root, id)) {
		errs = append(errs, RemoveScratch(file))
	}
	return errors.Join(errs...)
}
