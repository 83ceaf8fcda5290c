// Package directory makes Berth's own directories and closes them to the other users of the host, and opens what is below
// directories that containers control. What lies below may be a root file system in which a container has made a setuid
// program: a user who gets there is root of the host.
package directory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// Private is the mode of a directory for root alone.
	Private fs.FileMode = 0o700
	// Passage is the mode of a directory with private ones in it, or with a socket that has a group: others get through
	// and cannot list it.
	Passage fs.FileMode = 0o711
	// Group is the mode of a directory that one group gets through beside root.
	Group fs.FileMode = 0o710
)

// Make makes a directory with exactly this mode, whatever the umask is. One of an earlier version gets the mode.
func Make(path string, mode fs.FileMode) error {
	return ensure(path, func(fs.FileMode) fs.FileMode { return mode })
}

// Close makes a directory, and takes from one that exists the rights beyond mode. It never adds any: an administrator may
// have closed it further. It reports whether it took any.
func Close(path string, mode fs.FileMode) (closed bool, err error) {
	_, err = os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, Make(path, mode)
	}
	err = ensure(path, func(now fs.FileMode) fs.FileMode {
		closed = now&^mode != 0
		return now & mode
	})
	return closed, err
}

// Admit makes a directory that one group gets through beside root. Group 0 is root's own.
//
// Root of a pod's user namespace is such a group to the host: an OCI runtime resolves the path of the root file system
// with its rights.
func Admit(path string, gid uint32) error {
	if gid == 0 {
		return Make(path, Private)
	}
	if err := os.MkdirAll(path, Passage); err != nil {
		return err
	}
	return set(path, int(gid), func(fs.FileMode) fs.FileMode { return Group })
}

func ensure(path string, mode func(now fs.FileMode) fs.FileMode) error {
	if err := os.MkdirAll(path, Passage); err != nil {
		return err
	}
	const keep = -1
	return set(path, keep, mode)
}

// set gives a directory to the user of this process, to a group unless that is negative, and a mode.
func set(path string, gid int, mode func(now fs.FileMode) fs.FileMode) (err error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("look at directory %s: %w", path, err)
	}
	if int(st.Uid) != os.Geteuid() || gid >= 0 && int(st.Gid) != gid { // an owner could open it again
		if err := dir.Chown(os.Geteuid(), gid); err != nil {
			return err
		}
	}
	now := fs.FileMode(st.Mode & 0o777)
	if want := mode(now); want != now {
		return dir.Chmod(want)
	}
	return nil
}
