package staticelf

import (
	"runtime"
	"syscall"
	"testing"
)

// syscallLength is that of the instruction.
const syscallLength = 2

// syscallIn has a process that is in a system call make another one, as a tracer can, and returns what that gave.
func syscallIn(t *testing.T, pid int, number, argument uint64) int64 {
	t.Helper()
	runtime.LockOSThread() // only one thread may trace
	defer runtime.UnlockOSThread()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(syscall.PtraceAttach(pid))
	var ws syscall.WaitStatus
	_, err := syscall.Wait4(pid, &ws, syscall.WALL, nil)
	check(err)
	var before, regs syscall.PtraceRegs
	check(syscall.PtraceGetRegs(pid, &before))
	regs = before
	regs.Rip -= syscallLength
	regs.Rax, regs.Rdi, regs.Orig_rax = number, argument, ^uint64(0)
	check(syscall.PtraceSetRegs(pid, &regs))
	check(syscall.PtraceSingleStep(pid))
	_, err = syscall.Wait4(pid, &ws, syscall.WALL, nil)
	check(err)
	check(syscall.PtraceGetRegs(pid, &regs))
	result := int64(regs.Rax)
	before.Rip -= syscallLength
	before.Rax, before.Orig_rax = 34, ^uint64(0) // pause again
	check(syscall.PtraceSetRegs(pid, &before))
	check(syscall.PtraceDetach(pid))
	return result
}
