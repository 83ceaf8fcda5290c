// Command population forks without end, faster than its processes can be listed and signalled one by
// one: each process forks and most parents exit at once.
package main

import (
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"unsafe"
)

func main() {
	n, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	signal.Ignore(syscall.SIGCHLD) // the kernel reaps
	pause := syscall.Timespec{Nsec: 200_000}
	founder := true
	for ; n > 0 && founder; n-- {
		founder = fork() != 0
	}
	for founder {
		pause.Sec = 1000
		syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
	}
	pid, _, _ := syscall.RawSyscall(syscall.SYS_GETPID, 0, 0, 0)
	for seed := uint32(pid); ; {
		seed = seed*1103515245 + 12345 + uint32(pid)
		switch child := fork(); {
		case child < 0: // at the limit of processes
			syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
		case child > 0 && (seed>>16)%8 != 0:
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
}

// fork makes a copy of the calling thread, which may only make raw system calls.
func fork() int {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return -1
	}
	return int(pid)
}
