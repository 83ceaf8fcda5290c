package hostcheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/namespace"
)

const areaKernel = "kernel"

func (f *facts) kernel(c *config.Config, root bool) {
	release := "unknown"
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		release = unix.ByteSliceToString(uts.Release[:]) + " " + unix.ByteSliceToString(uts.Machine[:])
	}
	f.info(areaKernel, "version", release)
	f.namespaces()
	f.pidfd()
	f.overlay(c, root)
	f.userNamespaces(c, root)
	f.seccomp()
}

func (f *facts) namespaces() {
	var missing []string
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid", "cgroup"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		f.fail(areaKernel, "namespaces", "missing: "+strings.Join(missing, ", "), "use a kernel with CONFIG_NAMESPACES and all of its kinds")
		return
	}
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		f.warn(areaKernel, "namespaces", "all but user", "for pods with user namespaces, use a kernel with CONFIG_USER_NS")
		return
	}
	f.ok(areaKernel, "namespaces", "mnt, net, ipc, uts, pid, cgroup, user")
}

// pidfdInfo is the beginning of struct pidfd_info, as long as Linux 6.13 had it.
type pidfdInfo struct {
	mask     uint64
	cgroupID uint64
	ids      [12]uint32
}

const (
	// pidfdGetInfo is _IOWR(0xFF, 11, struct pidfd_info) of 64 bytes.
	pidfdGetInfo = 0xc040ff0b
	// pidfdInfoExit asks for the exit status; kernels which know it take it out of the mask
	// of a process that lives, older ones do so as well, so the version decides.
	exitMajor, exitMinor = 6, 15
)

func (f *facts) pidfd() {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		f.fail(areaKernel, "pidfd", err.Error(), "use Linux 5.3 or newer, and allow pidfd_open in the seccomp filter that berthd runs under")
		return
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	info := pidfdInfo{}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || !kernelAtLeast(exitMajor, exitMinor) {
		f.warn(areaKernel, "pidfd", "works, without the exit status of reaped processes",
			"with Linux 6.15 or newer, exit codes survive even the death of berth-shim")
		return
	}
	f.ok(areaKernel, "pidfd", "works, with the exit status of reaped processes")
}

func kernelAtLeast(major, minor int) bool {
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return false
	}
	var gotMajor, gotMinor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &gotMajor, &gotMinor); err != nil {
		return false
	}
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}

func (f *facts) seccomp() {
	text, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil {
		f.fail(areaKernel, "seccomp", "missing", "use a kernel with CONFIG_SECCOMP_FILTER: pods get a filter by default")
		return
	}
	f.ok(areaKernel, "seccomp", "works, with "+strings.TrimSpace(string(text)))
}

// overlay mounts one where images are kept, in a mount namespace that ends with
// its thread.
func (f *facts) overlay(c *config.Config, root bool) {
	if !root {
		f.needsRoot(areaKernel, "overlay")
		return
	}
	base := existing(c.Root)
	dir, err := newScratch(base, overlayPrefix)
	if err != nil {
		f.fail(areaKernel, "overlay", fmt.Sprintf("not tried: %v", err), "make "+base+" writable, or set root to another directory")
		return
	}
	var volatileErr error
	plainErr := namespace.WithOwnMounts(func() error {
		if volatileErr = tryOverlay(dir.path, "volatile", ",volatile"); volatileErr == nil {
			return nil
		}
		return tryOverlay(dir.path, "plain", "")
	})
	cleanErr := errors.Join(dir.remove(), sweep(base, overlayPrefix, (*scratch).remove))
	switch {
	case plainErr != nil:
		f.fail(areaKernel, "overlay", plainErr.Error(),
			"load it with: modprobe overlay; on an overlay file system, as in containers, put root on a volume of another kind")
	case volatileErr != nil:
		f.warn(areaKernel, "overlay", "works in "+base+", without volatile", "with Linux 5.10 or newer, containers do not wait for disks")
	case cleanErr != nil:
		f.warn(areaKernel, "overlay", cleanErr.Error(), "remove "+filepath.Join(base, overlayPrefix)+"*")
	default:
		f.ok(areaKernel, "overlay", "works in "+base+", with volatile")
	}
}

func tryOverlay(dir, name, option string) error {
	dir = filepath.Join(dir, name)
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	merged := filepath.Join(dir, "merged")
	data := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work%s", dir, dir, dir, option)
	if err := unix.Mount("overlay", merged, "overlay", 0, data); err != nil {
		return fmt.Errorf("mount an overlay: %w", err)
	}
	return unix.Unmount(merged, unix.MNT_DETACH)
}

// existing returns the innermost directory of path that exists.
func existing(path string) string {
	for {
		info, err := os.Stat(path)
		if err == nil && info.IsDir() || path == "/" {
			return path
		}
		path = filepath.Dir(path)
	}
}

// isMissing says whether a file is simply not there.
func isMissing(err error) bool { return errors.Is(err, os.ErrNotExist) }
