// Package namespace keeps the Linux namespaces of a pod alive without a process: each one is pinned as a bind mount of its
// nsfs inode in a directory of the pod.
//
// A set of namespaces is configured completely (loopback, host name, sysctls) before the first of them is pinned, and the
// mount points of all of them exist before the first mount. So a directory in which every mount point carries a namespace
// is a finished set, and anything else is what a crash left behind; [Probe] tells the two apart.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The names of the mount points in the directory of a pod.
const (
	netFile  = "net"
	ipcFile  = "ipc"
	utsFile  = "uts"
	pidFile  = "pid"
	userFile = "user"
)

// Request says which namespaces a pod needs and how they are configured.
type Request struct {
	Dir      string            // where they are pinned; created, must not hold anything else
	Net      bool              // a network namespace, its loopback device up
	IPC      bool              // an IPC namespace
	UTS      bool              // a UTS namespace with Hostname
	Hostname string            // set in the UTS namespace; empty keeps the name of the host
	Sysctls  map[string]string // must all belong to one of the namespaces made
	// Label is the SELinux label of the directory of message queues; empty leaves what the kernel gives.
	Label string
	// UIDs and GIDs, both or neither, ask for a user namespace with these mappings, which then owns the others.
	UIDs, GIDs []specs.LinuxIDMapping
}

// Paths names the pinned namespaces of a pod. An empty string means that there is none of that kind.
type Paths struct {
	Net string // network
	IPC string // System V IPC and POSIX message queues
	UTS string // host name
	PID string // process IDs, pinned by [PinPID]
	// User is the user namespace, which owns the others.
	User string
}

// Create makes the namespaces and pins them in req.Dir. When it returns an error nothing of it is left. What an earlier,
// interrupted call has left in the directory is undone first; so is a finished set, therefore Create must not be called for
// a pod that is in use.
//
// A sysctl that no namespace of the request owns, that the kernel does not know or whose value it refuses is an
// [errdefs.ErrInvalidArgument] which names it. Settings of a network device that does not exist yet (as
// net.ipv4.conf.eth0.forwarding) are left to [ApplyLinkSysctls].
func Create(ctx context.Context, req Request) (Paths, error) {
	if err := req.validate(); err != nil {
		return Paths{}, err
	}
	if err := ctx.Err(); err != nil {
		return Paths{}, fmt.Errorf("create namespaces in %s: %w", req.Dir, err)
	}
	if err := prepareDir(ctx, req.Dir); err != nil {
		return Paths{}, err
	}
	if err := create(req); err != nil {
		return Paths{}, errors.Join(err, Remove(context.WithoutCancel(ctx), req.Dir))
	}
	paths, _ := Probe(req.Dir)
	return paths, nil
}

// Remove unpins whatever namespaces are pinned in dir and removes dir. It is idempotent: a directory that is not there is
// no error. A namespace itself lives on until the last process in it has ended.
func Remove(_ context.Context, dir string) error {
	var errs []error
	for _, name := range []string{netFile, ipcFile, utsFile, pidFile, userFile} {
		errs = append(errs, unpin(filepath.Join(dir, name)))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove namespaces: %w", err)
	}
	return nil
}

// Probe reports which namespaces are pinned in dir. It is true only if dir holds a finished set: at least one namespace, and
// none of those that [Create] began with missing.
func Probe(dir string) (Paths, bool) {
	var p Paths
	found, complete := false, true
	for name, field := range map[string]*string{netFile: &p.Net, ipcFile: &p.IPC, utsFile: &p.UTS, userFile: &p.User} {
		path := filepath.Join(dir, name)
		switch {
		case isNamespace(path):
			*field, found = path, true
		case exists(path):
			complete = false
		}
	}
	if path := filepath.Join(dir, pidFile); isNamespace(path) {
		p.PID = path
	}
	return p, found && complete
}

// PinPID pins the PID namespace of process pid in dir, which is created if it is not there, and returns its path. An
// earlier pin in the same directory is replaced.
func PinPID(dir string, pid int) (string, error) {
	path := filepath.Join(dir, pidFile)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("pin PID namespace of process %d: %w", pid, err)
	}
	if err := unpin(path); err != nil {
		return "", fmt.Errorf("pin PID namespace of process %d: %w", pid, err)
	}
	if err := makeMountPoint(path); err != nil {
		return "", fmt.Errorf("pin PID namespace of process %d: %w", pid, err)
	}
	if err := bind(fmt.Sprintf("/proc/%d/ns/pid", pid), path); err != nil {
		return "", errors.Join(fmt.Errorf("pin PID namespace of process %d: %w", pid, err), unpin(path))
	}
	return path, nil
}

func (req Request) validate() error {
	if !filepath.IsAbs(req.Dir) {
		return fmt.Errorf("namespace directory %q: must be an absolute path: %w", req.Dir, errdefs.ErrInvalidArgument)
	}
	if (len(req.UIDs) == 0) != (len(req.GIDs) == 0) {
		return fmt.Errorf("namespace directory %s: mappings of users and of groups go together: %w", req.Dir, errdefs.ErrInvalidArgument)
	}
	if !req.Net && !req.IPC && !req.UTS && !req.user() {
		return fmt.Errorf("namespace directory %s: no namespace asked for: %w", req.Dir, errdefs.ErrInvalidArgument)
	}
	// The kernel's limit is __NEW_UTS_LEN.
	if len(req.Hostname) > 64 {
		return fmt.Errorf("hostname %q: longer than 64 bytes: %w", req.Hostname, errdefs.ErrInvalidArgument)
	}
	if req.Hostname != "" && !req.UTS {
		return fmt.Errorf("hostname %q: the pod uses the UTS namespace of the host: %w", req.Hostname, errdefs.ErrInvalidArgument)
	}
	for name := range req.Sysctls {
		if err := req.checkSysctl(name); err != nil {
			return err
		}
	}
	return nil
}

// prepareDir leaves an empty directory at dir.
func prepareDir(ctx context.Context, dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrNotExist) {
		err = os.MkdirAll(dir, 0o700)
	} else if errors.Is(err, os.ErrExist) {
		if err := Remove(ctx, dir); err != nil {
			return fmt.Errorf("undo earlier namespaces: %w", err)
		}
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("create namespace directory: %w", err)
	}
	return nil
}

// user tells whether a user namespace is asked for.
func (req Request) user() bool { return len(req.UIDs) > 0 }

// create does the work of [Create] on a thread of its own, which then returns to the namespaces of the process.
func create(req Request) (err error) {
	flags, files := 0, []string(nil)
	for _, kind := range []struct {
		wanted bool
		flag   int
		file   string
	}{{req.Net, unix.CLONE_NEWNET, netFile}, {req.IPC, unix.CLONE_NEWIPC, ipcFile}, {req.UTS, unix.CLONE_NEWUTS, utsFile}} {
		if kind.wanted {
			flags |= kind.flag
			files = append(files, kind.file)
		}
	}
	for _, file := range files {
		if err := makeMountPoint(filepath.Join(req.Dir, file)); err != nil {
			return fmt.Errorf("create namespaces: %w", err)
		}
	}
	if !req.user() {
		return onThread(flags, func() error {
			if err := unix.Unshare(flags); err != nil {
				return fmt.Errorf("create namespaces in %s: unshare: %w", req.Dir, err)
			}
			return req.finish(files)
		})
	}
	if err := makeMountPoint(filepath.Join(req.Dir, userFile)); err != nil {
		return fmt.Errorf("create namespaces: %w", err)
	}
	// No thread of this process can be in a user namespace of its own, so another process makes them.
	b, err := beBorn(req.UIDs, req.GIDs, flags)
	if err != nil {
		return fmt.Errorf("create namespaces in %s: %w", req.Dir, err)
	}
	defer func() { err = errors.Join(err, b.end()) }()
	if flags != 0 {
		err = onThread(flags, func() error {
			if err := b.enter(flags); err != nil {
				return err
			}
			return req.finish(files)
		})
	}
	if err == nil {
		err = pin(b.file(userFile), req.Dir, userFile)
	}
	return err
}

// finish configures the namespaces of the calling thread and pins them.
func (req Request) finish(files []string) error {
	if err := req.configure(); err != nil {
		return err
	}
	for _, file := range files {
		if err := pin("/proc/thread-self/ns/"+file, req.Dir, file); err != nil {
			return err
		}
	}
	return nil
}

func pin(source, dir, file string) error {
	if err := bind(source, filepath.Join(dir, file)); err != nil {
		return fmt.Errorf("pin %s namespace: %w", file, err)
	}
	return nil
}

// configure brings the namespaces of the calling thread into the state that the request describes.
func (req Request) configure() error {
	if req.Net {
		if err := raiseLoopback(); err != nil {
			return err
		}
	}
	if req.IPC && (req.user() || req.Label != "") {
		if err := req.handQueues(); err != nil {
			return err
		}
	}
	if req.Hostname != "" {
		if err := unix.Sethostname([]byte(req.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", req.Hostname, err)
		}
	}
	for name, value := range req.Sysctls {
		if linkOf(name) != "" && !exists(SysctlPath(name)) {
			continue
		}
		if err := req.setSysctl(name, value); err != nil {
			return err
		}
	}
	return nil
}

// setSysctl sets a value as the daemon or, where the kernel wants that, as root of the pod's user namespace.
func (req Request) setSysctl(name, value string) error {
	value = req.onHost(name, value)
	err := writeSysctl(name, value)
	if !errors.Is(err, os.ErrPermission) || !req.user() {
		return err
	}
	return asRootOf(req.UIDs[0].HostID, func() error { return writeSysctl(name, value) })
}

// raiseLoopback sets the loopback device of the thread's network namespace up; the kernel then gives it its addresses.
func raiseLoopback() (err error) {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring loopback up: socket: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(sock)) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}
