package staticelf

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// confine makes a program undumpable, so that processes of its user cannot trace it, takes its capabilities away and limits
// it to the system calls of the rest of the program. Others fail with EPERM. It exits with 1 if the filter is refused, but
// not if the kernel has no seccomp filters. It cannot gain privileges again.
func confine(calls map[string][]uint32) map[string][]byte {
	x86, arm := filter(auditX86, calls["amd64"]), filter(auditARM, calls["arm64"])
	return map[string][]byte{
		"amd64": slices.Concat(hardenX86, []byte{0xe8}, little(uint32(len(x86))), x86, []byte{0x68}, little(uint32(len(x86)/8)), installX86),
		"arm64": slices.Concat(hardenARM, words(0x94000000|uint32(1+len(arm)/4)), arm,
			words(0xd2800009|uint32(len(arm)/8)<<5), installARM),
	}
}

const (
	auditX86 = 0xc000003e // AUDIT_ARCH_X86_64
	auditARM = 0xc00000b7 // AUDIT_ARCH_AARCH64
)

// filter is the BPF program that allows calls of one architecture. The offsets are those of struct seccomp_data.
func filter(arch uint32, calls []uint32) []byte {
	const load, equal, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	n := len(calls)
	code := bpf(load, 0, 0, 4) // the architecture
	code = append(code, bpf(equal, 0, byte(n+1), arch)...)
	code = append(code, bpf(load, 0, 0, 0)...) // the number
	for i, call := range calls {
		code = append(code, bpf(equal, byte(n-i), 0, call)...)
	}
	code = append(code, bpf(ret, 0, 0, unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM))...)
	return append(code, bpf(ret, 0, 0, unix.SECCOMP_RET_ALLOW)...)
}

// bpf is one struct sock_filter.
func bpf(code uint16, jt, jf byte, k uint32) []byte {
	b := binary.NativeEndian.AppendUint16(nil, code)
	return binary.NativeEndian.AppendUint32(append(b, jt, jf), k)
}

// The parts for amd64; between them are a call over the filter, which pushes its address, and a push of its length.
var (
	hardenX86 = []byte{
		0xbf, 0x26, 0, 0, 0, // mov edi, 38 (PR_SET_NO_NEW_PRIVS)
		0xbe, 0x01, 0, 0, 0, // mov esi, 1
		0x31, 0xd2, // xor edx, edx
		0x45, 0x31, 0xd2, // xor r10d, r10d
		0x45, 0x31, 0xc0, // xor r8d, r8d
		0xb8, 0x9d, 0, 0, 0, // mov eax, 157 (prctl)
		0x0f, 0x05, // syscall
		0xbf, 0x04, 0, 0, 0, // mov edi, 4 (PR_SET_DUMPABLE)
		0x31, 0xf6, // xor esi, esi
		0xb8, 0x9d, 0, 0, 0, // mov eax, 157 (prctl)
		0x0f, 0x05, // syscall
		0x31, 0xc0, // xor eax, eax
		0x50, 0x50, 0x50, // push rax, three times: no capabilities
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0x68, 0x22, 0x05, 0x08, 0x20, // push _LINUX_CAPABILITY_VERSION_3
		0x48, 0x89, 0xe7, // mov rdi, rsp
		0xb8, 0x7e, 0, 0, 0, // mov eax, 126 (capset)
		0x0f, 0x05, // syscall
	}
	installX86 = []byte{
		0x48, 0x89, 0xe2, // mov rdx, rsp: struct sock_fprog
		0xbf, 0x16, 0, 0, 0, // mov edi, 22 (PR_SET_SECCOMP)
		0xbe, 0x02, 0, 0, 0, // mov esi, 2 (SECCOMP_MODE_FILTER)
		0xb8, 0x9d, 0, 0, 0, // mov eax, 157 (prctl)
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax, eax
		0x74, 0x11, // je over the exit
		0x83, 0xf8, 0xea, // cmp eax, -22 (EINVAL: no seccomp)
		0x74, 0x0c, // je over the exit
		0xbf, 0x01, 0, 0, 0, // mov edi, 1
		0xb8, 0xe7, 0, 0, 0, // mov eax, 231 (exit_group)
		0x0f, 0x05, // syscall
	}
)

// The parts for arm64; between them are a branch over the filter, which leaves its address in x30, and mov x9, its length.
var (
	hardenARM = words(
		0xd28004c0, // mov x0, #38 (PR_SET_NO_NEW_PRIVS)
		0xb24003e1, // mov x1, #1
		0xaa1f03e2, // mov x2, #0
		0xaa1f03e3, // mov x3, #0
		0xaa1f03e4, // mov x4, #0
		0xd28014e8, // mov x8, #167 (prctl)
		0xd4000001, // svc #0
		0xb27e03e0, // mov x0, #4 (PR_SET_DUMPABLE)
		0xaa1f03e1, // mov x1, #0
		0xd28014e8, // mov x8, #167 (prctl)
		0xd4000001, // svc #0
		0xd100c3ff, // sub sp, sp, #48
		0xa9017fff, // stp xzr, xzr, [sp, #16]: no capabilities
		0xf90013ff, // str xzr, [sp, #32]
		0x5280a449, // mov w9, #0x522
		0xf2a40109, // movk x9, #0x2008, lsl #16: _LINUX_CAPABILITY_VERSION_3
		0xf90003e9, // str x9, [sp]
		0x910003e0, // mov x0, sp
		0x910043e1, // add x1, sp, #16
		0xd2800b68, // mov x8, #91 (capset)
		0xd4000001, // svc #0
	)
	installARM = words(
		0xa9007be9, // stp x9, x30, [sp]: struct sock_fprog
		0xd28002c0, // mov x0, #22 (PR_SET_SECCOMP)
		0xb27f03e1, // mov x1, #2 (SECCOMP_MODE_FILTER)
		0x910003e2, // mov x2, sp
		0xd28014e8, // mov x8, #167 (prctl)
		0xd4000001, // svc #0
		0xb40000c0, // cbz x0, over the exit
		0xb100581f, // cmn x0, #22 (EINVAL: no seccomp)
		0x54000080, // b.eq over the exit
		0xb24003e0, // mov x0, #1
		0xd2800bc8, // mov x8, #94 (exit_group)
		0xd4000001, // svc #0
	)
)

var (
	confinePause = confine(map[string][]uint32{
		"amd64": {0, 3, 34, 231}, // read, close, pause, exit_group
		"arm64": {63, 57, 73, 94},
	})
	confineWait = confine(map[string][]uint32{"amd64": {34}, "arm64": {73}})
)
