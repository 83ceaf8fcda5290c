package supervisor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/atomicfile"
	"github.com/berth-runtime/berth/internal/ociruntime/staticelf"
	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

const (
	// infraOOMScore is the oom_score_adj of an infra process, on which all containers of a pod depend.
	infraOOMScore = -998
	// infraUser is the user that an infra process runs as outside of a user namespace: one that images do not use.
	infraUser = math.MaxInt32
	// confineDeadline bounds how long an infra process may take to confine itself.
	confineDeadline = 30 * time.Second
	// pauseProgram is in an infra process's root directory, which holds only such
	// programs, and is what all of them are called.
	pauseProgram = "pause"
	// lastCapability is beyond the highest that any kernel knows; dropping ends at EINVAL.
	lastCapability = 63
)

// startInfra starts the process that holds a pod's PID namespace.
func (s *Supervisor) startInfra(ctx context.Context, req *wire.StartInfraRequest) (record, error) {
	if err := checkID("infra ID", req.Id); err != nil {
		return record{}, err
	}
	for {
		c, mine := s.claimID(record{Version: recordVersion, ID: req.Id, Infra: true, Cgroup: req.CgroupPath, State: stateStarting})
		if mine {
			err := c.startInfra(req) //nolint:contextcheck // a clean-up has its own deadline
			c.release()
			return c.record(), err
		}
		if err := c.acquire(ctx); err != nil {
			return record{}, err
		}
		got, gone := c.record(), c.isGone()
		c.release()
		if !gone {
			return got, nil
		}
	}
}

// startInfra is StartInfra for one that was just made. After an error nothing of it is left.
func (c *container) startInfra(req *wire.StartInfraRequest) error {
	err := c.tryStartInfra(req)
	if err == nil {
		close(c.ready)
		return nil
	}
	err = fmt.Errorf("start infra process %s: %w", c.id, err)
	c.mu.Lock()
	c.failed = true
	c.mu.Unlock()
	close(c.ready)
	if c.init.pid > 1 && c.init.running() {
		if pidfd := c.init.fd(); pidfd != nil {
			err = errors.Join(err, proc.Signal(pidfd, syscall.SIGKILL))
			<-c.init.done
		}
	}
	return errors.Join(err, c.dispose())
}

func (c *container) tryStartInfra(req *wire.StartInfraRequest) error {
	if err := os.Mkdir(c.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	root, program, err := c.s.infraRoot(req)
	if err != nil {
		return err
	}
	// The program waits for a byte, which it gets once the record names it: if this
	// process dies before, it reads the end of its stdin and exits.
	stdin, word, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer func() { _ = word.Close() }()
	pid, err := c.s.children.start(func() (int, error) { return spawnInfra(root, program, stdin, req) }, c.init.exited)
	_ = stdin.Close()
	if err != nil {
		return err
	}
	c.init.pid = pid
	if err := proc.LimitOOMScore(pid, infraOOMScore); err != nil {
		return err
	}
	stat, err := proc.Read(pid)
	if err != nil {
		return err
	}
	c.init.started = stat.Started
	pidfd, err := proc.Open(pid, stat.Started)
	if err != nil {
		return err
	}
	c.init.mu.Lock()
	c.init.pidfd = pidfd
	c.init.mu.Unlock()
	if req.CgroupPath != "" {
		if err := c.s.cfg.Cgroups.AddProc(req.CgroupPath, pid); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	err = c.change(func(r *record) {
		r.State, r.PID, r.Started, r.StartedNano = stateRunning, pid, stat.Started, time.Now().UnixNano()
	})
	if err != nil {
		return err
	}
	if _, err := word.Write([]byte{1}); err != nil {
		return fmt.Errorf("let it go on: %w", err)
	}
	return awaitConfined(word)
}

// awaitConfined returns when the program of an infra process has read its byte and closed the pipe, which it does once it has
// confined itself. No container may join its PID namespace before.
func awaitConfined(word *os.File) error {
	fds := []unix.PollFd{{Fd: int32(word.Fd())}} //nolint:gosec // descriptors are small
	for deadline := time.Now().Add(confineDeadline); ; {
		left := time.Until(deadline)
		n, err := unix.Poll(fds, int(max(left, 0).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait until it is confined: %w", err)
		case n == 0:
			return fmt.Errorf("it has not confined itself within %v", confineDeadline)
		}
		break
	}
	unread, err := unix.IoctlGetInt(int(word.Fd()), unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("see whether it is confined: %w", err)
	}
	if unread > 0 {
		return errors.New("it has ended without confining itself")
	}
	return nil
}

// infraRoot makes the directory that infra processes have as their root, with
// the program that a request needs.
func (s *Supervisor) infraRoot(req *wire.StartInfraRequest) (root, name string, err error) {
	root, name = filepath.Join(s.cfg.Dir, "infra"), pauseProgram
	program, err := staticelf.Pause()
	if req.UserNs != "" {
		name = fmt.Sprintf("enter-%d-%d", req.Uid, req.Gid)
		program, err = staticelf.Enter(req.Uid, req.Gid)
	}
	if err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", "", fmt.Errorf("make infra root: %w", err)
	}
	path := filepath.Join(root, name)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, program) { // not that of an older version
		return root, name, nil
	}
	if err := atomicfile.Write(path, program, 0o555); err != nil {
		return "", "", fmt.Errorf("write infra program: %w", err)
	}
	return root, name, nil
}

// spawnInfra forks from a thread that has entered the namespaces and has a mount
// namespace with nothing but root in it, so that no mount of the host stays busy
// in there. The thread ends with its goroutine; it must not serve anybody else.
func spawnInfra(root, program string, stdin *os.File, req *wire.StartInfraRequest) (pid int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked
		if req.UserNs != "" {
			pid, err = spawnInUser(root, program, stdin, req)
			return
		}
		if err = enterInfra(root, req); err != nil {
			return
		}
		pid, err = syscall.ForkExec("/"+program, []string{pauseProgram}, &syscall.ProcAttr{
			Dir: "/", Files: []uintptr{stdin.Fd()},
			Sys: &syscall.SysProcAttr{
				Setsid: true, Cloneflags: syscall.CLONE_NEWPID,
				Credential: &syscall.Credential{Uid: infraUser, Gid: infraUser},
			},
		})
		if err != nil {
			err = fmt.Errorf("execute built-in program: %w", err)
		}
	}()
	<-done
	return pid, err
}

// spawnInUser is spawnInfra in a user namespace. The program that enters it
// leaves another child of this process behind, and ends.
func spawnInUser(root, program string, stdin *os.File, req *wire.StartInfraRequest) (int, error) {
	user, err := os.Open(req.UserNs)
	if err != nil {
		return 0, fmt.Errorf("open user namespace: %w", err)
	}
	defer func() { _ = user.Close() }()
	answer, say, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("make pipe: %w", err)
	}
	defer func() { _ = answer.Close() }()
	if err := enterInfra(root, req); err != nil {
		return 0, errors.Join(err, say.Close())
	}
	const none = ^uintptr(0)
	entrant, err := syscall.ForkExec("/"+program, []string{pauseProgram}, &syscall.ProcAttr{
		Dir: "/", Files: []uintptr{stdin.Fd(), none, none, user.Fd(), say.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	_ = say.Close()
	if err != nil {
		return 0, fmt.Errorf("execute built-in program: %w", err)
	}
	var pid [4]byte
	_, err = io.ReadFull(answer, pid[:])
	for {
		var ws syscall.WaitStatus
		_, waited := syscall.Wait4(entrant, &ws, 0, nil)
		switch {
		case errors.Is(waited, syscall.EINTR):
			continue
		case waited != nil:
			return 0, fmt.Errorf("wait for built-in program: %w", waited)
		case err != nil:
			return 0, fmt.Errorf("enter user namespace %s: %w", req.UserNs, syscall.Errno(ws.ExitStatus()))
		}
		return int(binary.NativeEndian.Uint32(pid[:])), nil
	}
}

func enterInfra(root string, req *wire.StartInfraRequest) error {
	for _, ns := range []struct {
		path string
		kind int
	}{{req.NetNs, unix.CLONE_NEWNET}, {req.IpcNs, unix.CLONE_NEWIPC}, {req.UtsNs, unix.CLONE_NEWUTS}} {
		if ns.path == "" {
			continue
		}
		if err := joinNamespace(ns.path, ns.kind); err != nil {
			return err
		}
	}
	if err := labelNext("exec", "SELinux label", req.ProcessLabel); err != nil {
		return err
	}
	if req.ApparmorProfile != "" {
		if err := labelNext("apparmor/exec", "AppArmor profile", "exec "+req.ApparmorProfile); err != nil {
			return err
		}
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	if err := enterRoot(root, req.MountLabel); err != nil {
		return fmt.Errorf("enter empty root: %w", err)
	}
	for capability := range uintptr(lastCapability) {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	return nil
}

// labelNext gives what the thread executes next a label of a security module. Children of the thread inherit that.
func labelNext(file, what, label string) error {
	if label == "" {
		return nil
	}
	if err := os.WriteFile("/proc/thread-self/attr/"+file, []byte(label), 0); err != nil {
		return fmt.Errorf("set %s %s: %w", what, label, err)
	}
	return nil
}

// mountRoot makes root a mount point. An overlay can have a label of its own, which a bind mount cannot, but needs two layers.
func mountRoot(root, label string) error {
	if label == "" {
		if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind root: %w", err)
		}
		return nil
	}
	empty := root + ".empty"
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return fmt.Errorf("make an empty layer: %w", err)
	}
	if err := unix.Chdir(filepath.Dir(root)); err != nil { // that of the thread
		return err
	}
	options := fmt.Sprintf("context=%q,lowerdir=%s:%s", label, filepath.Base(root), filepath.Base(empty))
	if err := unix.Mount("overlay", root, "overlay", unix.MS_RDONLY, options); err != nil {
		return fmt.Errorf("mount root with SELinux label %s: %w", label, err)
	}
	return nil
}

func joinNamespace(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("join namespace %s: %w", path, err)
	}
	return nil
}

// enterRoot makes root, read-only, the only mount of the thread's mount namespace. All files in there have the label, if
// there is one.
func enterRoot(root, label string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := mountRoot(root, label); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach host mounts: %w", err)
	}
	const flags = unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("", "/", "", flags, ""); err != nil {
		return fmt.Errorf("make root read-only: %w", err)
	}
	return unix.Chdir("/")
}
