package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// fifoMode lets every user of the container open its own /dev/stdout again; the
	// directory above keeps everybody else out.
	fifoMode = 0o666
	// labelAttr is where SELinux has the label of a file.
	labelAttr = "security.selinux"
)

// makeFIFO makes a FIFO that the container may use: with an SELinux label, if there is one.
func makeFIFO(path, label string) error {
	if err := errors.Join(unix.Mkfifo(path, fifoMode), unix.Chmod(path, fifoMode)); err != nil {
		return fmt.Errorf("make FIFO %s: %w", filepath.Base(path), err)
	}
	if label == "" {
		return nil
	}
	if err := unix.Lsetxattr(path, labelAttr, []byte(label), 0); err != nil {
		return fmt.Errorf("label FIFO %s: %w", filepath.Base(path), err)
	}
	return nil
}

func openFIFO(dir, name string, mode int) (*os.File, error) {
	path := filepath.Join(dir, name)
	for {
		fd, err := unix.Open(path, mode|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open FIFO %s: %w", name, err)
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}
