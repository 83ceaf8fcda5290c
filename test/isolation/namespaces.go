package isolation

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	tmp = "/tmp"
	// prefix begins the names of the directories that become the /tmp of a test binary.
	prefix = "berth-test-"
	// source is what the mount table shows for file systems of this package.
	source = "berth-test"
)

// shared are directories of the machine that keep their entries in the isolated process, except for those named here:
// Berth, OCI runtimes and CNI plugins make them, and each test binary has its own.
var shared = map[string][]string{
	"/run":     {"berth", "cni", "containerd", "crun", "netns", "runc", "runsc", "xtables.lock"},
	"/var/lib": {"berth", "cni", "containerd"},
	"/etc/cni": {"net.d"},
}

// enter executes this program in new namespaces. It returns only if that fails; the process must then end, because one
// of its threads is not where the others are.
func enter() error {
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return fmt.Errorf("make a directory for %s: %w", tmp, err)
	}
	err = enterWith(dir)
	// Not recursively: directories of the machine may be mounted below.
	return errors.Join(err, os.Remove(dir))
}

func enterWith(dir string) error {
	keep, err := kept()
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		return fmt.Errorf("open the directory for %s to all users: %w", tmp, err)
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the test binary: %w", err)
	}
	cwd, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the working directory: %w", err)
	}
	// The kernel lets one thread of several enter a new mount namespace, and gives its namespaces to the program that it
	// executes.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make mount and network namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make all mounts private: %w", err)
	}
	if err := replaceTmp(dir, keep); err != nil {
		return err
	}
	for dir, own := range shared {
		if err := replace(dir, own); err != nil {
			return err
		}
	}
	if err := raiseLoopback(); err != nil {
		return err
	}
	// The old working directory may be below a mount point by now.
	if err := os.Chdir(cwd); err != nil {
		return fmt.Errorf("enter the working directory again: %w", err)
	}
	namespace, err := mountNamespace()
	if err != nil {
		return err
	}
	s := state{pid: os.Getpid(), namespace: namespace, tmp: dir}
	if err := errors.Join(os.Setenv(stateVariable, s.String()), os.Unsetenv("TMPDIR")); err != nil {
		return fmt.Errorf("set the environment: %w", err)
	}
	if err := syscall.Exec(program, os.Args, os.Environ()); err != nil {
		return fmt.Errorf("execute %s in new namespaces: %w", program, err)
	}
	return nil
}

// kept returns the entries of the machine's /tmp that the tests see: those that arguments, environment and working
// directory name. The test binary and files of the go command are there, the repository or a cache may be.
func kept() ([]string, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the test binary: %w", err)
	}
	cwd, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find the working directory: %w", err)
	}
	return entriesOf(tmp, slices.Concat(os.Args, os.Environ(), []string{program, cwd})), nil
}

// entriesOf returns the entries of a directory that words name paths in.
func entriesOf(dir string, words []string) []string {
	found := map[string]bool{}
	for _, word := range words {
		for _, path := range strings.FieldsFunc(word, func(r rune) bool { return strings.ContainsRune("=:,", r) }) {
			rest, below := strings.CutPrefix(filepath.Clean(path), dir+"/")
			name, _, _ := strings.Cut(rest, "/")
			if below && name != "" {
				found[name] = true
			}
		}
	}
	names := make([]string, 0, len(found))
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// replaceTmp mounts dir on /tmp, with some entries of the machine's /tmp in it.
func replaceTmp(dir string, keep []string) error {
	old, err := openDirectory(tmp)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(old) }()
	if err := unix.Mount(dir, tmp, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", dir, tmp, err)
	}
	for _, name := range keep {
		if err := expose(old, tmp, name); err != nil {
			return err
		}
	}
	return nil
}

// replace mounts a file system on dir that has its entries except for some.
func replace(dir string, except []string) error {
	old, err := openDirectory(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(old) }()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	if err := unix.Mount(source, dir, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	for _, e := range entries {
		if slices.Contains(except, e.Name()) {
			continue
		}
		if err := expose(old, dir, e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// openDirectory opens a directory in the mount namespace of the calling thread.
func openDirectory(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

// expose shows an entry of an open directory in dir. What is gone by now is left out.
func expose(old int, dir, name string) error {
	from, to := fmt.Sprintf("/proc/self/fd/%d/%s", old, name), filepath.Join(dir, name)
	info, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		switch info.Mode().Type() {
		case fs.ModeSymlink:
			var target string
			if target, err = os.Readlink(from); err == nil {
				err = os.Symlink(target, to)
			}
			return wrap(err, to)
		case fs.ModeDir:
			err = os.Mkdir(to, 0o755)
		default:
			err = os.WriteFile(to, nil, 0o600)
		}
	}
	if err == nil {
		err = unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
	}
	return wrap(err, to)
}

func wrap(err error, path string) error {
	if err != nil {
		return fmt.Errorf("show %s of the machine to the tests: %w", path, err)
	}
	return nil
}

func raiseLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring up the loopback device: %w", err)
	}
	return nil
}

// leave removes the directory of /tmp. With strict it is an error if the tests have left files there.
func (s state) leave(strict bool) error {
	keep, err := kept()
	if err != nil {
		return err
	}
	left, err := leftIn(tmp, keep)
	if err != nil {
		return err
	}
	// All that is mounted below goes with it, so that the removal cannot reach directories of the machine.
	if err := unix.Unmount(tmp, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", tmp, err)
	}
	below, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.tmp))
	if err != nil {
		return fmt.Errorf("list mounts below %s: %w", s.tmp, err)
	}
	if len(below) > 0 {
		return fmt.Errorf("remove %s: %s is mounted there", s.tmp, below[0].Mountpoint)
	}
	if err := os.RemoveAll(s.tmp); err != nil {
		return fmt.Errorf("remove the directory of %s: %w", tmp, err)
	}
	if strict && len(left) > 0 {
		return fmt.Errorf("the tests leave files in %s: %s", tmp, strings.Join(left, ", "))
	}
	return nil
}

// leftIn lists the entries of a directory except for some.
func leftIn(dir string, except []string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for files that tests leave: %w", err)
	}
	var left []string
	for _, e := range entries {
		if !slices.Contains(except, e.Name()) {
			left = append(left, filepath.Join(dir, e.Name()))
		}
	}
	return left, nil
}
