package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// errReported is the failure of a process that has printed its cause.
var errReported = errors.New("failed")

// isolate runs this program again in its own PID, mount and network namespaces. Whatever the cluster
// leaves there ends with them.
func isolate(ctx context.Context, o options) error {
	args := []string{"-isolated", "-bin", o.bin, "-programs", o.programs, "-handler", o.handler, "-run", o.only,
		"-hold=" + strconv.FormatBool(o.hold)}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
		// A signal of the terminal reaches the cluster once, through this process.
		Setpgid: true,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start in namespaces of its own: %w", err)
	}
	if o.hold {
		fmt.Printf("To enter the namespaces of the cluster: nsenter -t %d -m -n -p\n", cmd.Process.Pid)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) {
		return errReported
	} else if err != nil {
		return fmt.Errorf("wait for the cluster: %w", err)
	}
	return nil
}

// reap is PID 1 of the namespace: it prepares the mounts, runs this program once more and waits for
// every process that becomes its child.
func reap(ctx context.Context) error {
	if err := privateMounts(); err != nil {
		return err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	go func() {
		<-ctx.Done()
		// The process may have ended by itself.
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			fmt.Fprintf(os.Stderr, "cluster: end the cluster: %v\n", err)
		}
	}()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for processes: %w", err)
		case pid == cmd.Process.Pid && (status.Signaled() || status.ExitStatus() != 0):
			return errReported
		case pid == cmd.Process.Pid:
			return nil
		}
	}
}

// privateMounts separates the mount table from the host's and covers the directories in which kubelet
// and network plugins have fixed paths.
func privateMounts() error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		// Pods may ask for mount propagation.
		{"", "/", "", unix.MS_REC | unix.MS_SHARED},
		{"proc", "/proc", "proc", 0},
		{"sysfs", "/sys", "sysfs", 0},
		{"tmpfs", "/run", "tmpfs", 0},
		{"tmpfs", "/var/log", "tmpfs", 0},
		{"tmpfs", "/var/lib", "tmpfs", 0},
	} {
		if m.target == "/sys" {
			if err := mountSys(); err != nil {
				return err
			}
			continue
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	return nil
}

// mountSys mounts a sysfs that shows the network namespace, with the host's cgroup tree in it.
func mountSys() error {
	const cgroups = "/sys/fs/cgroup"
	tree, err := unix.OpenTree(unix.AT_FDCWD, cgroups, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("copy the mounts of %s: %w", cgroups, err)
	}
	defer unix.Close(tree) //nolint:errcheck // it holds no data
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs on /sys: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, cgroups, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the control groups on %s: %w", cgroups, err)
	}
	return nil
}
