// Package proc identifies processes beyond the reuse of their IDs, and finds out
// how they ended, also when another process reaped them.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Stat is the part of /proc/PID/stat that matters here.
type Stat struct {
	PID, Parent, Group, Session int
	State                       byte
	// Flags are the kernel's PF_ flags.
	Flags uint64
	// Started is when the process started, in clock ticks since boot: with the PID it identifies a process.
	Started uint64
	// ExitStatus is the wait status; it means something once the process has ended.
	ExitStatus uint32
}

// Dead tells whether the process has ended and only waits to be reaped.
func (s Stat) Dead() bool { return s.State == 'Z' || s.State == 'X' || s.State == 'x' }

// Fields of /proc/PID/stat behind the command, counted from the state; proc_pid_stat(5) numbers it 3.
const (
	fieldState   = 0
	fieldParent  = 1
	fieldGroup   = 2
	fieldSession = 3
	fieldFlags   = 6
	fieldStarted = 19
	fieldExit    = 49
)

// Read reads the state of a process; one that does not exist is ErrNotFound.
func Read(pid int) (Stat, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return Stat{}, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return Stat{}, fmt.Errorf("read state of process %d: %w", pid, err)
	}
	return parseStat(pid, text)
}

func parseStat(pid int, text []byte) (Stat, error) {
	// The command is in brackets and may hold anything, brackets too.
	end := bytes.LastIndexByte(text, ')')
	fields := bytes.Fields(text[end+1:])
	if end < 0 || len(fields) <= fieldStarted || len(fields[fieldState]) != 1 {
		return Stat{}, fmt.Errorf("read state of process %d: malformed line: %w", pid, errdefs.ErrInternal)
	}
	number := func(i int) uint64 {
		if i >= len(fields) {
			return 0
		}
		n, err := strconv.ParseUint(string(fields[i]), 10, 64)
		if err != nil {
			return 0 // negative: no session or no parent in this namespace
		}
		return n
	}
	return Stat{
		PID: pid, State: fields[fieldState][0], Parent: int(number(fieldParent)), Group: int(number(fieldGroup)), Session: int(number(fieldSession)),
		Flags: number(fieldFlags), Started: number(fieldStarted), ExitStatus: uint32(number(fieldExit)),
	}, nil
}

// Open returns a pidfd of the process that has this ID and start time; another
// process with the ID, or none, is ErrNotFound. It cannot be fooled by reuse: the
// start time is read while the pidfd is open.
func Open(pid int, started uint64) (*os.File, error) {
	// Non-blocking, so that the runtime's poller can wait for it.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.EINVAL) { // before Linux 5.10
		fd, err = unix.PidfdOpen(pid, 0)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open pidfd of process %d: %w", pid, err)
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	stat, err := Read(pid)
	if err == nil && stat.Started != started {
		err = fmt.Errorf("process %d is another one now: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// Signal sends sig through a pidfd; ErrNotFound when the process has ended.
func Signal(pidfd *os.File, sig syscall.Signal) error {
	err := control(pidfd, func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process has ended: %w", errdefs.ErrNotFound)
	}
	return err
}

// Wait blocks until the process of a non-blocking pidfd has ended, or the file is closed.
func Wait(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return Ended(int(fd)) })
}

// Ended tells whether the process of a pidfd has ended.
func Ended(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n > 0
	}
}

// pidfdInfo is struct pidfd_info of <linux/pidfd.h>, in its first published size.
type pidfdInfo struct {
	mask     uint64
	cgroup   uint64
	pid      uint32
	tgid     uint32
	ppid     uint32
	ids      [8]uint32
	exitCode int32
}

const (
	pidfdInfoExit   = 1 << 3
	pidfdGetInfoCmd = 0xc0000000 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xff<<8 | 11 // _IOWR(0xFF, 11, struct pidfd_info)
)

// ExitStatus returns the wait status of a process that has ended or is
// released. While it is a zombie the status is in /proc; once reaped the pidfd has it, if it was open
// before and the kernel is 6.15 or later. ErrNotFound means that no process has it.
func ExitStatus(pidfd *os.File, pid int, started uint64) (uint32, error) {
	// Between the two looks its parent may reap it, so look at the pidfd again.
	for range 2 {
		info := pidfdInfo{mask: pidfdInfoExit}
		err := control(pidfd, func(fd int) error {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfoCmd, uintptr(unsafe.Pointer(&info)))
			if errno != 0 {
				return errno
			}
			return nil
		})
		if err == nil && info.mask&pidfdInfoExit != 0 {
			return uint32(info.exitCode), nil
		}
		if stat, err := Read(pid); err == nil && stat.Started == started && (stat.Dead() || Released(pidfd)) {
			return stat.ExitStatus, nil
		}
	}
	return 0, fmt.Errorf("exit status of process %d, reaped by another process: %w", pid, errdefs.ErrNotFound)
}

func control(file *os.File, call func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	if err := raw.Control(func(fd uintptr) { callErr = call(int(fd)) }); err != nil {
		return err
	}
	return callErr
}
