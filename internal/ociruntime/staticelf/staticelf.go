// Package staticelf holds built-in programs of a few machine instructions each: one
// that exits, to try an OCI runtime with, and two that reap and wait, to hold a PID
// namespace open or to be what a sandbox container runs. They need no image and no library.
package staticelf

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"

	"github.com/containerd/errdefs"
)

const (
	headerSize  = 64
	programSize = 56
	// loadAddress is where the only segment goes; code starts behind the headers.
	loadAddress = 0x400000
	machineX86  = 62
	machineARM  = 183
)

// program is one program for one machine.
type program struct {
	machine uint16
	code    []byte
}

// exit: exit_group(0).
var exit = map[string]program{
	"amd64": {machineX86, []byte{
		0x31, 0xff, // xor edi, edi
		0xb8, 0xe7, 0, 0, 0, // mov eax, 231 (exit_group)
		0x0f, 0x05, // syscall
	}},
	"arm64": {machineARM, words(
		0xaa1f03e0, // mov x0, #0
		0xd2800bc8, // mov x8, #94 (exit_group)
		0xd4000001, // svc #0
	)},
}

// reap: rt_sigaction(SIGCHLD, {SIG_IGN}), so that the kernel reaps what the
// namespace orphans.
var reap = map[string][]byte{
	"amd64": {
		0x31, 0xc0, // xor eax, eax
		0x50,       // push rax: mask
		0x50,       // push rax: restorer
		0x50,       // push rax: flags
		0x6a, 0x01, // push 1: handler SIG_IGN
		0xbf, 0x11, 0, 0, 0, // mov edi, 17 (SIGCHLD)
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0x31, 0xd2, // xor edx, edx
		0x41, 0xba, 0x08, 0, 0, 0, // mov r10d, 8
		0xb8, 0x0d, 0, 0, 0, // mov eax, 13 (rt_sigaction)
		0x0f, 0x05, // syscall
	},
	"arm64": words(
		0xd10083ff, // sub sp, sp, #32
		0xb24003e9, // mov x9, #1 (SIG_IGN)
		0xf90003e9, // str x9, [sp]: handler
		0xa900ffff, // stp xzr, xzr, [sp, #8]: flags, restorer
		0xf9000fff, // str xzr, [sp, #24]: mask
		0xd2800220, // mov x0, #17 (SIGCHLD)
		0x910003e1, // mov x1, sp
		0xaa1f03e2, // mov x2, #0
		0xb27d03e3, // mov x3, #8
		0xd28010c8, // mov x8, #134 (rt_sigaction)
		0xd4000001, // svc #0
	),
}

// word: one byte is awaited on stdin, and what is behind forever is executed when
// stdin ends without.
var word = map[string][]byte{
	"amd64": {
		0x31, 0xc0, // xor eax, eax (read)
		0x31, 0xff, // xor edi, edi
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0xba, 0x01, 0, 0, 0, // mov edx, 1
		0x0f, 0x05, // syscall
		0x83, 0xf8, 0x01, // cmp eax, 1
		0x75, 0x12, // jne to mov eax, 231
		0xb8, 0x03, 0, 0, 0, // mov eax, 3 (close)
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
	},
	"arm64": words(
		0xaa1f03e0, // mov x0, #0
		0x910003e1, // mov x1, sp
		0xb24003e2, // mov x2, #1
		0xb24017e8, // mov x8, #63 (read)
		0xd4000001, // svc #0
		0xf100041f, // cmp x0, #1
		0x54000181, // b.ne to mov x0, #1
		0xaa1f03e0, // mov x0, #0
		0xd2800728, // mov x8, #57 (close)
		0xd4000001, // svc #0
	),
}

// forever: it waits.
var forever = map[string][]byte{
	"amd64": {
		0xb8, 0x22, 0, 0, 0, // mov eax, 34 (pause)
		0x0f, 0x05, // syscall
		0xeb, 0xf7, // jmp to mov eax, 34
	},
	"arm64": words(
		0xaa1f03e0, // mov x0, #0
		0xaa1f03e1, // mov x1, #0
		0xaa1f03e2, // mov x2, #0
		0xaa1f03e3, // mov x3, #0
		0xb27d03e4, // mov x4, #8
		0xd2800928, // mov x8, #73 (ppoll)
		0xd4000001, // svc #0
		0x17fffff9, // b to mov x0, #0
	),
}

// fail: exit_group(1).
var fail = map[string][]byte{
	"amd64": {
		0xb8, 0xe7, 0, 0, 0, // mov eax, 231 (exit_group)
		0xbf, 0x01, 0, 0, 0, // mov edi, 1
		0x0f, 0x05, // syscall
	},
	"arm64": words(
		0xb24003e0, // mov x0, #1
		0xd2800bc8, // mov x8, #94 (exit_group)
		0xd4000001, // svc #0
	),
}

// pause ends when its stdin does before it got a byte: its parent has ended
// before taking note of it.
var pause = join(reap, confinePause, word, forever, fail)

var wait = join(reap, confineWait, forever)

// join makes a program of its parts.
func join(parts ...map[string][]byte) map[string]program {
	joined := map[string]program{}
	for arch, machine := range map[string]uint16{"amd64": machineX86, "arm64": machineARM} {
		var code []byte
		for _, part := range parts {
			code = slices.Concat(code, part[arch])
		}
		joined[arch] = program{machine, code}
	}
	return joined
}

// Exit returns the program that exits with 0, for this machine.
func Exit() ([]byte, error) { return build(exit, runtime.GOARCH) }

// Pause returns the program that confines itself, awaits a byte on its stdin, closes that,
// then reaps and waits, for this machine. It ends when stdin does first.
func Pause() ([]byte, error) { return build(pause, runtime.GOARCH) }

// Wait returns the program that confines itself, reaps and waits, for this machine.
func Wait() ([]byte, error) { return build(wait, runtime.GOARCH) }

// build wraps code into a static executable with one read-only, executable segment.
func build(programs map[string]program, arch string) ([]byte, error) {
	p, ok := programs[arch]
	if !ok {
		return nil, fmt.Errorf("built-in program for %s: %w", arch, errdefs.ErrNotImplemented)
	}
	size := uint64(headerSize + programSize + len(p.code))
	le := binary.LittleEndian
	b := make([]byte, 0, size)
	b = append(b, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint16(b, 2)                                  // executable
	b = le.AppendUint16(b, p.machine)                          //
	b = le.AppendUint32(b, 1)                                  // version
	b = le.AppendUint64(b, loadAddress+headerSize+programSize) // entry
	b = le.AppendUint64(b, headerSize)                         // program headers
	b = le.AppendUint64(b, 0)                                  // no section headers
	b = le.AppendUint32(b, 0)                                  // flags
	for _, half := range []uint16{headerSize, programSize, 1, 0, 0, 0} {
		b = le.AppendUint16(b, half)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // readable, executable
	for _, long := range []uint64{0, loadAddress, loadAddress, size, size, 0x1000} {
		b = le.AppendUint64(b, long)
	}
	return append(b, p.code...), nil
}

func words(w ...uint32) []byte {
	var b []byte
	for _, one := range w {
		b = binary.LittleEndian.AppendUint32(b, one)
	}
	return b
}
