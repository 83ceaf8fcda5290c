package probecontainer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/proc"
)

const (
	// closeTimeout bounds the end of a probe container.
	closeTimeout = 10 * time.Second
	// systemdSlice and systemdPrefix are where systemd puts a probe container.
	systemdSlice, systemdPrefix = "system.slice", "berth"
)

// undo takes everything away, in the order in which one thing could make another: processes, cgroups, files. It may be
// repeated; the directory, which leads to all else, goes last.
func (t *Container) undo(ctx context.Context) error {
	if err := t.killAll(ctx); err != nil {
		return fmt.Errorf("remove probe container %s: %w", t.ID, err)
	}
	err := errors.Join(t.removeCgroups(ctx), t.removeLeavings(), t.unmount())
	if err == nil {
		err = os.RemoveAll(t.Dir)
	}
	if err != nil {
		return fmt.Errorf("remove probe container %s: %w", t.ID, err)
	}
	return nil
}

// killAll ends the processes that the probe container has outside of the container, again until none is found: one that was about
// to end may have started another.
func (t *Container) killAll(ctx context.Context) error {
	for {
		found, err := t.killOnce(ctx)
		if err != nil || !found {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("kill processes: %w", err)
		}
	}
}

// killOnce tells whether there was a process.
func (t *Container) killOnce(ctx context.Context) (found bool, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return false, fmt.Errorf("list processes: %w", err)
	}
	for _, file := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil || pid == os.Getpid() || !t.owns(pid) {
			continue
		}
		found = true
		if err := t.kill(ctx, pid); err != nil {
			return found, fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return found, nil
}

// owns tells from a command line whether a process is one of the probe's. One that has ended has none.
// Anybody may have such a command line, so only processes of the host's root are looked at.
func (t *Container) owns(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(text, []byte(t.Dir)) && proc.IsHostRoot(pid)
}

// kill ends a process and waits until it is gone. The number may have got a new bearer meanwhile: the descriptor has not.
func (t *Container) kill(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = pidfd.Close() }()
	if !t.owns(pid) {
		return nil
	}
	if err := proc.Signal(pidfd, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return proc.AwaitEnd(ctx, pidfd)
}

// removeCgroups empties and removes the cgroup of the container, with both cgroup drivers.
func (t *Container) removeCgroups(ctx context.Context) error {
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	for _, path := range []string{"/" + t.ID, "/" + systemdSlice + "/" + systemdPrefix + "-" + t.ID + ".scope"} {
		if !host.Exists(path) {
			continue
		}
		if err := errors.Join(host.KillAll(ctx, path), host.Remove(path)); err != nil {
			return err
		}
	}
	return nil
}

// removeLeavings removes what is noted.
func (t *Container) removeLeavings() error {
	text, err := os.ReadFile(t.leavings())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look what was left: %w", err)
	}
	var errs []error
	for path := range strings.Lines(string(text)) {
		// A line without an end is one that was cut off: what it tells was not made.
		path, whole := strings.CutSuffix(path, "\n")
		if !whole {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			errs = append(errs, fmt.Errorf("remove what was left: %w", err))
		}
	}
	return errors.Join(errs...)
}

// unmount detaches what is mounted beneath the directory, the last first.
func (t *Container) unmount() error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(t.Dir))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}
