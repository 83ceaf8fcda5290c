package ociruntime

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openNull opens /dev/null for a command. OCI runtimes give the standard streams
// to the user of the container, and some take no account of what these are (crun
// from 2021 to 2025, runc 1.1.3 and 1.1.4): the device would change hands for the
// whole host. Therefore it is opened on a mount of its own that is read-only: the
// device works, and its owner cannot be changed, which runtimes take for an answer.
// Before Linux 5.12 it is opened as it is.
func openNull() (*os.File, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, os.DevNull, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		defer func() { _ = unix.Close(tree) }()
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	path := fmt.Sprintf("/proc/self/fd/%d", tree)
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		path = os.DevNull
	case err != nil:
		return nil, fmt.Errorf("mount %s apart: %w", os.DevNull, err)
	}
	null, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	return null, nil
}
