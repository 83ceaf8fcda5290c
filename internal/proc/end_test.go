package proc

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReleased: PID 1 of a namespace that was killed is seen to have ended, and how, while a process of the namespace is not
// reaped by its parent, which is outside: then the kernel tells of no end.
func TestReleased(t *testing.T) {
	first := exec.Command("sleep", "1000")
	first.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	second := exec.Command("sleep", "1000")
	startIn(t, first, "")
	startIn(t, second, fmt.Sprintf("/proc/%d/ns/pid", first.Process.Pid))
	s, err := Read(first.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := Open(s.PID, s.Started)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pidfd.Close() }()
	if Released(pidfd) {
		t.Error("a process that runs is taken for one that has ended")
	}
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := AwaitEnd(short, pidfd); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a process that runs: %v", err)
	}

	if err := Signal(pidfd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := AwaitEnd(ctx, pidfd); err != nil {
		t.Fatal(err)
	}
	if err := control(pidfd, func(fd int) error {
		if Ended(fd) {
			return errors.New("the kernel tells of the end: this is not the state that the test is about")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if status, err := ExitStatus(pidfd, s.PID, s.Started); err != nil || status != uint32(syscall.SIGKILL) {
		t.Errorf("it ended with %#x, %v, want signal 9", status, err)
	}

	for _, cmd := range []*exec.Cmd{second, first} {
		var killed *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &killed) {
			t.Errorf("process ends with %v", err)
		}
	}
	if Released(pidfd) {
		t.Error("of a process that was reaped the pidfd tells")
	}
	if err := AwaitEnd(ctx, pidfd); err != nil {
		t.Errorf("of a process that was reaped: %v", err)
	}
}

// startIn starts a child, in another PID namespace if one is given.
func startIn(t *testing.T, cmd *exec.Cmd, namespace string) {
	t.Helper()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: its children are in the namespace
		started <- errors.Join(joinPID(namespace), cmd.Start())
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended if all went well
}

func joinPID(namespace string) error {
	if namespace == "" {
		return nil
	}
	fd, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Setns(fd, unix.CLONE_NEWPID), unix.Close(fd))
}
