package staticelf

import (
	"encoding/binary"
	"runtime"
	"slices"
)

// Enter returns the program that holds a PID namespace open in a user
// namespace, for this machine. Neither Go nor a thread of a Go program can enter
// one, so the program does: it takes
//
//	0  what pause reads
//	3  the user namespace
//	4  a pipe, into which it writes 4 bytes: the ID of its child
//
// It enters the user namespace as root, makes a PID namespace that this one
// owns, empties the bounding set, becomes uid and gid in there, and
// starts a sibling (CLONE_PARENT), which closes both and goes on as pause. Then
// it ends, with the number of the error if there was one.
func Enter(uid, gid uint32) ([]byte, error) { return build(enter(uid, gid), runtime.GOARCH) }

func enter(uid, gid uint32) map[string]program {
	return map[string]program{
		"amd64": {machineX86, slices.Concat(
			enterX86, []byte{0xbf}, little(gid), resgidX86, []byte{0xbf}, little(uid), resuidX86, pause["amd64"].code)},
		"arm64": {machineARM, slices.Concat(
			enterARM, setW0(gid), resgidARM, setW0(uid), resuidARM, pause["arm64"].code)},
	}
}

func little(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }

// setW0 is movz w0, #low; movk w0, #high, lsl #16.
func setW0(n uint32) []byte { return words(0x52800000|n&0xffff<<5, 0x72a00000|n>>16<<5) }

// The parts for amd64; between them are mov edi, gid and mov edi, uid.
var (
	enterX86 = []byte{
		0xbf, 0x03, 0x00, 0x00, 0x00, // mov edi,0x3
		0xbe, 0x00, 0x00, 0x00, 0x10, // mov esi, CLONE_NEWUSER
		0xb8, 0x34, 0x01, 0x00, 0x00, // mov eax,308 (setns)
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax,eax
		0x0f, 0x85, 0x32, 0x00, 0x00, 0x00, // jne fail
		0x31, 0xff, // xor edi,edi
		0x31, 0xf6, // xor esi,esi
		0x31, 0xd2, // xor edx,edx
		0xb8, 0x75, 0x00, 0x00, 0x00, // mov eax,117 (setresuid)
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax,eax
		0x75, 0x21, // jne fail
		0xbf, 0x00, 0x00, 0x00, 0x20, // mov edi, CLONE_NEWPID
		0xb8, 0x10, 0x01, 0x00, 0x00, // mov eax,272 (unshare)
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax,eax
		0x75, 0x11, // jne fail
		0x31, 0xff, // xor edi,edi
		0x31, 0xf6, // xor esi,esi
		0xb8, 0x74, 0x00, 0x00, 0x00, // mov eax,116 (setgroups)
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax,eax
		0x75, 0x02, // jne fail
		0xeb, 0x0b, // jmp over it
		0x89, 0xc7, // mov edi,eax (fail)
		0xf7, 0xdf, // neg edi
		0xb8, 0xe7, 0x00, 0x00, 0x00, // mov eax,231 (exit_group)
		0x0f, 0x05, // syscall
		0x31, 0xdb, // xor ebx,ebx
		0xbf, 0x18, 0x00, 0x00, 0x00, // mov edi,24 (PR_CAPBSET_DROP)
		0x89, 0xde, // mov esi,ebx
		0xb8, 0x9d, 0x00, 0x00, 0x00, // mov eax,157 (prctl)
		0x0f, 0x05, // syscall
		0xff, 0xc3, // inc ebx
		0x83, 0xfb, 0x40, // cmp ebx,64
		0x75, 0xeb, // jne to mov edi,24
	}
	resgidX86 = []byte{
		0x89, 0xfe, // mov esi,edi
		0x89, 0xfa, // mov edx,edi
		0xb8, 0x77, 0x00, 0x00, 0x00, // mov eax,119 (setresgid)
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax,eax
		0x75, 0x47, // jne a4 fail
	}
	resuidX86 = []byte{
		0x89, 0xfe, // mov esi,edi
		0x89, 0xfa, // mov edx,edi
		0xb8, 0x75, 0x00, 0x00, 0x00, // mov eax,117 (setresuid)
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax,eax
		0x75, 0x33, // jne a4 fail
		0xbf, 0x11, 0x80, 0x00, 0x00, // mov edi, CLONE_PARENT|SIGCHLD
		0x31, 0xf6, // xor esi,esi
		0x31, 0xd2, // xor edx,edx
		0x45, 0x31, 0xd2, // xor r10d,r10d
		0x45, 0x31, 0xc0, // xor r8d,r8d
		0xb8, 0x38, 0x00, 0x00, 0x00, // mov eax,56 (clone)
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax,eax
		0x78, 0x19, // js a4 fail
		0x74, 0x22, // je af child
		0x50,                         // push rax
		0xbf, 0x04, 0x00, 0x00, 0x00, // mov edi,0x4
		0x48, 0x89, 0xe6, // mov rsi,rsp
		0xba, 0x04, 0x00, 0x00, 0x00, // mov edx,0x4
		0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax,1 (write)
		0x0f, 0x05, // syscall
		0x31, 0xc0, // xor eax,eax
		0x89, 0xc7, // mov edi,eax
		0xf7, 0xdf, // neg edi
		0xb8, 0xe7, 0x00, 0x00, 0x00, // mov eax,231 (exit_group)
		0x0f, 0x05, // syscall
		0xbf, 0x03, 0x00, 0x00, 0x00, // mov edi,0x3
		0xb8, 0x03, 0x00, 0x00, 0x00, // mov eax,3 (close)
		0x0f, 0x05, // syscall
		0xbf, 0x04, 0x00, 0x00, 0x00, // mov edi,0x4
		0xb8, 0x03, 0x00, 0x00, 0x00, // mov eax,3 (close)
		0x0f, 0x05, // syscall
	}
)

// The parts for arm64; between them gid and uid are put into w0.
var (
	enterARM = words(
		0xd2800060, // mov x0, #3
		0xd2a20001, // mov x1, #268435456
		0xd2802188, // mov x8, #268 (setns)
		0xd4000001, // svc #0
		0xb50006c0, // cbnz x0 fail
		0xd2800000, // mov x0, #0
		0xd2800001, // mov x1, #0
		0xd2800002, // mov x2, #0
		0xd2801268, // mov x8, #147 (setresuid)
		0xd4000001, // svc #0
		0xb5000600, // cbnz x0 fail
		0xd2a40000, // mov x0, #536870912
		0xd2800c28, // mov x8, #97 (unshare)
		0xd4000001, // svc #0
		0xb5000580, // cbnz x0 fail
		0xd2800000, // mov x0, #0
		0xd2800001, // mov x1, #0
		0xd28013e8, // mov x8, #159 (setgroups)
		0xd4000001, // svc #0
		0xb50004e0, // cbnz x0 fail
		0xaa1f03f3, // mov x19, #0
		0xb27d07e0, // mov x0, #24 (PR_CAPBSET_DROP)
		0xaa1303e1, // mov x1, x19
		0xd28014e8, // mov x8, #167 (prctl)
		0xd4000001, // svc #0
		0x91000673, // add x19, x19, #1
		0xf101027f, // cmp x19, #64
		0x54ffff41, // b.ne to mov x0, #24
	)
	resgidARM = words(
		0x2a0003e1, // mov w1, w0
		0x2a0003e2, // mov w2, w0
		0xd28012a8, // mov x8, #149 (setresgid)
		0xd4000001, // svc #0
		0xb5000300, // cbnz x0 fail
	)
	resuidARM = words(
		0x2a0003e1, // mov w1, w0
		0x2a0003e2, // mov w2, w0
		0xd2801268, // mov x8, #147 (setresuid)
		0xd4000001, // svc #0
		0xb5000220, // cbnz x0 fail
		0xd2900220, // mov x0, #32785
		0xd2800001, // mov x1, #0
		0xd2800002, // mov x2, #0
		0xd2800003, // mov x3, #0
		0xd2800004, // mov x4, #0
		0xd2801b88, // mov x8, #220 (clone)
		0xd4000001, // svc #0
		0xb7f80120, // tbnz x0, #63 fail
		0xb4000160, // cbz x0 child
		0xf81f0fe0, // str x0, [sp, #-16]!
		0xd2800080, // mov x0, #4
		0x910003e1, // mov x1, sp
		0xd2800082, // mov x2, #4
		0xd2800808, // mov x8, #64 (write)
		0xd4000001, // svc #0
		0xd2800000, // mov x0, #0
		0xcb0003e0, // neg x0, x0
		0xd2800bc8, // mov x8, #94 (exit_group)
		0xd4000001, // svc #0
		0xd2800060, // mov x0, #3
		0xd2800728, // mov x8, #57 (close)
		0xd4000001, // svc #0
		0xd2800080, // mov x0, #4
		0xd2800728, // mov x8, #57 (close)
		0xd4000001, // svc #0
	)
)
