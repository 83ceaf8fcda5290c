package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/shim/crilog"
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

// openTerminalFIFO opens both ends of the FIFO that a terminal's output passes through, and makes it
// if it is missing: earlier versions had none.
func openTerminalFIFO(dir string) (*os.File, error) {
	fifo, err := openFIFO(dir, stdoutFIFO, unix.O_RDWR|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mkfifo(filepath.Join(dir, stdoutFIFO), 0o600); err != nil {
			return nil, fmt.Errorf("make FIFO %s: %w", stdoutFIFO, err)
		}
		fifo, err = openFIFO(dir, stdoutFIFO, unix.O_RDWR|unix.O_NONBLOCK)
	}
	if err != nil {
		return nil, err
	}
	raw, err := fifo.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { crilog.SizeFIFO(int(fd)) })
	}
	if err != nil {
		return nil, errors.Join(err, fifo.Close())
	}
	return fifo, nil
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
