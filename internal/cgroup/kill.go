package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/proc"
)

// KillAll sends SIGKILL to every process of the cgroup at path and of those
// below it, and returns nil once none is left, frozen ones and fork bombs
// included. A cgroup that does not exist has no process. It waits on kernel
// events; when ctx ends first the error says what is left.
func (h *Host) KillAll(ctx context.Context, path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	kill := h.killLegacy
	if h.Mode == V2 {
		kill = h.killUnified
	}
	if err := kill(ctx, path); err != nil {
		return fmt.Errorf("kill processes of cgroup %s: %w", path, err)
	}
	return nil
}

// killUnified uses cgroup.kill (Linux 5.14), which is atomic and reaches
// frozen processes too, and falls back to signals.
func (h *Host) killUnified(ctx context.Context, path string) error {
	dir := join(h.unified, path)
	err := writeString(filepath.Join(dir, "cgroup.kill"), "1")
	if errors.Is(err, fs.ErrNotExist) {
		if !h.Exists(path) {
			return nil
		}
		return h.killLegacy(ctx, path)
	}
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return waitEmpty(ctx, dir)
}

// waitEmpty returns when no process is left below a v2 cgroup directory.
func waitEmpty(ctx context.Context, dir string) error {
	if err := awaitEvent(ctx, dir, "populated 0"); !gone(err) {
		return err
	}
	return nil
}

// awaitEvent returns when a line is in cgroup.events of a v2 cgroup directory.
func awaitEvent(ctx context.Context, dir, line string) error {
	file, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // opened for reading only
	for {
		buffer := make([]byte, 256)
		n, err := file.ReadAt(buffer, 0)
		if n == 0 && err != nil {
			return err
		}
		if strings.Contains(string(buffer[:n]), line) {
			return nil
		}
		if err := awaitChange(ctx, int(file.Fd())); err != nil {
			return err
		}
	}
}

// killLegacy signals process after process while the freezer keeps them from
// forking, and repeats until a look finds none.
func (h *Host) killLegacy(ctx context.Context, path string) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := h.setFrozen(path, true); err != nil {
			return err
		}
		killed, found, err := h.signalAll(path)
		// The signal takes effect only once the freezer lets go, also of what was paused before.
		err = errors.Join(err, h.setFrozen(path, false))
		for _, pidfd := range killed {
			if err == nil {
				err = proc.AwaitEnd(ctx, pidfd)
			}
			err = errors.Join(err, pidfd.Close())
		}
		if err != nil || !found {
			return err
		}
	}
}

// signalAll sends SIGKILL to what is in the cgroup now and returns a pidfd of
// each process that it signalled, and whether there was any process at all.
//
// The processes are listed again after their pidfds are open: a number that
// was reused in between for a process elsewhere is not in the second list.
func (h *Host) signalAll(path string) (killed []*os.File, found bool, err error) {
	before, err := h.pids(path)
	if err != nil || len(before) == 0 {
		return nil, false, err
	}
	opened := map[int]*os.File{}
	var errs []error
	for pid := range before {
		if pid == os.Getpid() {
			errs = append(errs, fmt.Errorf("process %d is the caller itself: %w", pid, errdefs.ErrFailedPrecondition))
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		switch {
		case err == nil:
			opened[pid] = os.NewFile(uintptr(fd), "pidfd")
		case !errors.Is(err, syscall.ESRCH):
			errs = append(errs, fmt.Errorf("open process %d: %w", pid, err))
		}
	}
	after, err := h.pids(path)
	errs = append(errs, err)
	for pid, pidfd := range opened {
		if !after[pid] {
			errs = append(errs, pidfd.Close())
			continue
		}
		killed = append(killed, pidfd)
		if err := proc.Signal(pidfd, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", pid, err))
		}
	}
	return killed, true, errors.Join(errs...)
}

// pids returns every process of the cgroup and of those below it.
func (h *Host) pids(path string) (map[int]bool, error) {
	set := map[int]bool{}
	for _, dir := range h.dirs(path) {
		if err := collectPIDs(dir, true, set); err != nil && !gone(err) {
			return nil, err
		}
	}
	return set, nil
}

// awaitChange blocks until a file of the kernel has changed or ctx ends.
func awaitChange(ctx context.Context, fd int) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(pipe[0]) //nolint:errcheck // nothing was written
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		unix.Close(pipe[1]) //nolint:errcheck // closing is the message
	})
	defer func() {
		if stop() {
			unix.Close(pipe[1]) //nolint:errcheck // the reader is gone
			return
		}
		<-closed
	}()
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}, {Fd: int32(pipe[0])}}
		_, err := unix.Poll(poll, -1)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if poll[0].Revents != 0 {
			return nil
		}
		return ctx.Err()
	}
}
