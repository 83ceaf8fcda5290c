package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lockName is the file in a directory that the daemon which uses it locks.
const lockName = "berthd.lock"

// lockDir keeps other daemons out of dir until the file that it
// answers is closed or the process ends, however it does.
//
// The lock is one of the process (fcntl), not of the open file (flock): a child
// that was just forked and has not executed its program yet would hold the
// latter beyond the death of the daemon, and its successor would be refused.
// Nothing else in the process may open the file: closing it would unlock.
func lockDir(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock directory %s: %w", dir, err)
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	err = unix.FcntlFlock(file.Fd(), unix.F_SETLK, &whole)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("it is in use by %s: %w", holder(file), errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock directory %s: %w", dir, err), file.Close())
	}
	return file, nil
}

// holder names the process that has locked file.
func holder(file *os.File) string {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(file.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return "another daemon"
	}
	return fmt.Sprintf("the daemon with process ID %d", lock.Pid)
}
