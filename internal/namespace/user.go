package namespace

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime/staticelf"
)

// userLimit is the file of the kernel that bounds user namespaces.
const userLimit = "/proc/sys/user/max_user_namespaces"

// birth is a process that was born in new namespaces and waits. It runs a built-in program that reads from a pipe until
// that ends: with [birth.end], or with this process, however it dies.
type birth struct {
	pid   int
	alive *os.File
}

// beBorn starts a process in a new user namespace and in further new namespaces, which that one owns. The mappings are in
// force when it returns.
func beBorn(uids, gids []specs.LinuxIDMapping, flags int) (b *birth, err error) {
	program, err := memoryProgram()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, program.Close()) }()
	stdin, alive, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer func() { err = errors.Join(err, stdin.Close()) }()
	attr := &syscall.ProcAttr{
		Dir: "/", Files: []uintptr{stdin.Fd()},
		Sys: &syscall.SysProcAttr{
			Setsid: true, Cloneflags: uintptr(unix.CLONE_NEWUSER | flags),
			UidMappings: idMaps(uids), GidMappings: idMaps(gids),
			// The programs of the pod may change their groups, as they may without a user namespace.
			GidMappingsEnableSetgroups: true,
		},
	}
	pid, err := syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", program.Fd()), []string{"berth-namespace"}, attr)
	if err != nil {
		return nil, errors.Join(explainUser(err), alive.Close())
	}
	return &birth{pid: pid, alive: alive}, nil
}

// end lets the process go and waits for it.
func (b *birth) end() error {
	err := b.alive.Close()
	for {
		var status syscall.WaitStatus
		_, waited := syscall.Wait4(b.pid, &status, 0, nil)
		if !errors.Is(waited, syscall.EINTR) {
			return errors.Join(err, waited)
		}
	}
}

// file is the namespace of that kind that the process was born in.
func (b *birth) file(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", b.pid, kind) }

// enter moves the calling thread into the namespaces of the process; flags do not include the user namespace, which
// only a process of one thread could enter.
func (b *birth) enter(flags int) error {
	fd, err := unix.PidfdOpen(b.pid, 0)
	if err != nil {
		return fmt.Errorf("open process %d: %w", b.pid, err)
	}
	if err := unix.Setns(fd, flags); err != nil {
		err = fmt.Errorf("enter new namespaces: %w", err)
		return errors.Join(err, unix.Close(fd))
	}
	return unix.Close(fd)
}

// memoryProgram is the waiting program in a file that has no name.
func memoryProgram() (*os.File, error) {
	text, err := staticelf.Pause()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("berth-namespace", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "berth-namespace")
	if _, err := f.Write(text); err != nil {
		return nil, errors.Join(fmt.Errorf("write built-in program: %w", err), f.Close())
	}
	// A file that is open for writing cannot be executed; reopened, it is the same file.
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	return again, errors.Join(err, f.Close())
}

func idMaps(mappings []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	list := make([]syscall.SysProcIDMap, 0, len(mappings))
	for _, m := range mappings {
		list = append(list, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return list
}

// explainUser says what the kernel's answer to a new user namespace means.
func explainUser(err error) error {
	reason := ""
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		reason = " (the limit " + userLimit + " is reached)"
	case errors.Is(err, unix.EINVAL):
		reason = " (the kernel has none, or does not take the mapping)"
	case errors.Is(err, unix.EPERM):
		reason = " (the daemon may not map these IDs, or a security module forbids it)"
	}
	return fmt.Errorf("make a user namespace%s: %w: %w", reason, err, errdefs.ErrFailedPrecondition)
}

// NewUser makes a user namespace that lives as long as the file is open: what an idmapped mount takes its mapping from.
func NewUser(uids, gids []specs.LinuxIDMapping) (*os.File, error) {
	b, err := beBorn(uids, gids, 0)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(b.file("user"))
	if ended := b.end(); ended != nil {
		err = errors.Join(err, ended)
	}
	if err != nil {
		return nil, fmt.Errorf("open new user namespace: %w", err)
	}
	return f, nil
}

// UserSupported is nil if this process can make user namespaces with a mapping of the length that Kubernetes uses, and
// says why not.
func UserSupported() error {
	if text, err := os.ReadFile(userLimit); err == nil && strings.TrimSpace(string(text)) == "0" {
		return fmt.Errorf("%s is 0: %w", userLimit, errdefs.ErrFailedPrecondition)
	}
	mapping := []specs.LinuxIDMapping{{HostID: 1 << 16, Size: 1 << 16}}
	f, err := NewUser(mapping, mapping)
	if err != nil {
		return err
	}
	return f.Close()
}

// groupRange is the only setting of these namespaces whose value is IDs: the kernel takes them as those of the writer.
const groupRange = "net.ipv4.ping_group_range"

// onHost is the value of a setting as the daemon has to write it. A range of groups that goes beyond the pod's own, as the
// common one of all groups does, ends with them.
func (req Request) onHost(name, value string) string {
	var first, last uint32
	if !req.user() || strings.Join(sysctlParts(name), ".") != groupRange {
		return value
	}
	if n, err := fmt.Sscan(value, &first, &last); n != 2 || err != nil || first > last {
		return value // an empty range; or the kernel says what is wrong
	}
	m := req.GIDs[0]
	if first >= m.Size {
		return value
	}
	return fmt.Sprintf("%d %d", m.HostID+first, m.HostID+min(last, m.Size-1))
}

// asRootOf runs fn with the user ID of root of the pod's user namespace: since Linux 6.9 the settings of an IPC
// namespace belong to that user, and capabilities do not count. Only the calling thread changes its ID.
func asRootOf(uid uint32, fn func() error) error {
	const keep = ^uintptr(0)
	home := uintptr(os.Geteuid())
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	err := fn()
	// A thread that stays that user cannot return to the namespaces of the daemon either, so it ends.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, home, keep); errno != 0 {
		err = errors.Join(err, fmt.Errorf("become user %d again: %w", home, errno))
	}
	return err
}
