package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/proc"
)

// children starts and reaps every child of this process: OCI runtimes, which are
// waited for, and containers and execs, which the runtimes leave behind and which
// fall to this process since it is a child subreaper. Nothing else may wait for a
// child here, so os/exec is not used.
//
// A status is looked at (waitid with WNOWAIT) and handed on before the child is
// reaped: if this process is killed in between, the zombie still has it.
type children struct {
	log *slog.Logger
	// forks are executed on one thread that lives as long as the process. A runtime
	// has PR_SET_PDEATHSIG, which means the death of the thread that forked it.
	forks chan func()

	mu      sync.Mutex // held over fork and registration, and over each look for the dead
	watched map[int]*watcher
	claims  int            // runtimes at work, which may leave a child that is not known yet
	strays  map[int]uint32 // statuses of unknown children, kept while there are claims
}

// watcher gets the status of a child that ended.
type watcher struct{ tell func(status uint32) }

func newChildren(log *slog.Logger) *children {
	return &children{
		log: log, forks: make(chan func()), watched: map[int]*watcher{}, strays: map[int]uint32{},
	}
}

// becomeSubreaper makes orphaned descendants children of this process.
func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become child subreaper: %w", err)
	}
	return nil
}

// reap looks for the dead until ctx ends.
func (c *children) reap(ctx context.Context) {
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, syscall.SIGCHLD)
	defer signal.Stop(sigchld)
	for {
		c.sweep()
		select {
		case <-ctx.Done():
			return
		case <-sigchld:
		}
	}
}

// sweep hands on and reaps every child that has ended.
func (c *children) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		pid, status, err := peek()
		if err != nil || pid == 0 {
			return // ECHILD: there is no child
		}
		if w := c.watched[pid]; w != nil {
			delete(c.watched, pid)
			w.tell(status)
		} else if c.claims > 0 {
			c.strays[pid] = status
		}
		var ws syscall.WaitStatus
		for {
			if _, err = syscall.Wait4(pid, &ws, 0, nil); !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		if err != nil {
			c.log.Error("reap child", "pid", pid, "error", err)
			return
		}
	}
}

// siginfo is the kernel's siginfo_t for SIGCHLD on 64-bit machines.
type siginfo struct {
	signo, errno, code, _ int32
	pid, uid, status      int32
	_                     [100]byte
}

// peek returns a child that has ended, and its wait status, and leaves it a zombie.
func peek() (pid int, status uint32, err error) {
	var info siginfo
	for {
		err = unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	const exited, dumped = 1, 3 // CLD_EXITED, CLD_DUMPED
	switch {
	case err != nil || info.pid == 0:
		return 0, 0, err
	case info.code == exited:
		return int(info.pid), uint32(info.status&0xff) << 8, nil
	case info.code == dumped:
		return int(info.pid), uint32(info.status&0x7f) | 0x80, nil
	default:
		return int(info.pid), uint32(info.status & 0x7f), nil
	}
}

// claim says that a runtime is about to leave a child behind. The caller ends the
// claim once it has adopted the child, or when there is none.
func (c *children) claim() (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claims++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.claims--; c.claims == 0 {
			clear(c.strays)
		}
	})
}

// adopt has w get the status of pid when it ends. When it has ended already, as a
// unknown child, w gets it at once. False means that pid is no child of this
// process, yet: its parent may be an OCI runtime's helper that is about to end. So w
// gets it all the same should it become one, unless the caller disowns it. The stat
// is zero when the process is gone.
func (c *children) adopt(pid int, w *watcher) (stat proc.Stat, ours bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if status, ended := c.strays[pid]; ended {
		delete(c.strays, pid)
		w.tell(status)
		return proc.Stat{}, true
	}
	stat, err := proc.Read(pid)
	if err != nil {
		return stat, false
	}
	c.watched[pid] = w
	return stat, stat.Parent == os.Getpid()
}

// disown forgets what was adopted. Afterwards w will not get the status, or has got it.
func (c *children) disown(pid int, w *watcher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watched[pid] == w {
		delete(c.watched, pid)
	}
}

// start forks and registers a child in one step.
func (c *children) start(fork func() (int, error), tell func(status uint32)) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pid, err := fork()
	if err == nil {
		c.watched[pid] = &watcher{tell}
	}
	return pid, err
}

// onForkThread runs fn on the thread that forks runtimes.
func (c *children) onForkThread(fn func()) {
	done := make(chan struct{})
	c.forks <- func() {
		defer close(done)
		fn()
	}
	<-done
}

// kill sends SIGKILL to the process group of a child that has not been reaped.
func (c *children) kill(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watched[pid] == nil {
		return
	}
	if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil {
		c.log.Error("kill OCI runtime", "pid", pid, "error", err)
	}
}

// Run implements ociruntime.Runner. The command dies with this process: what it
// leaves half done is undone by the successor, which knows of it from its record.
func (c *children) Run(ctx context.Context, cmd *ociruntime.Command) (int, error) {
	ended := make(chan uint32, 1)
	pid, err := c.fork(cmd, func(fork func() (int, error)) (int, error) {
		return c.start(fork, func(status uint32) { ended <- status })
	})
	if err != nil {
		return -1, err
	}
	var status uint32
	select {
	case status = <-ended:
	case <-ctx.Done():
		c.kill(pid)
		if status = <-ended; status != 0 {
			return -1, ctx.Err()
		}
	}
	code, _ := decode(status)
	return code, nil
}

// fork has start fork a command on the thread for that.
func (c *children) fork(cmd *ociruntime.Command, start func(fork func() (int, error)) (int, error)) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = null.Close() }()
	fds := make([]uintptr, 0, 3)
	for _, f := range []*os.File{cmd.Stdin, cmd.Stdout, cmd.Stderr} {
		if f == nil {
			f = null
		}
		fds = append(fds, f.Fd())
	}
	attr := &syscall.ProcAttr{
		Dir: cmd.Dir, Env: append(os.Environ(), cmd.Env...), Files: fds,
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	}
	return start(func() (pid int, err error) {
		c.onForkThread(func() { pid, err = syscall.ForkExec(cmd.Path, append([]string{cmd.Path}, cmd.Args...), attr) })
		if err == nil {
			// What the command starts, as hooks, is not to be spared by the OOM killer.
			if err := proc.LimitOOMScore(pid, 0); err != nil {
				c.log.Warn("OOM score of an OCI runtime not set", "error", err)
			}
		}
		return pid, err
	})
}

// unreaped runs commands while the reaper pauses: not before all that a predecessor left was
// taken over may any other child be.
type unreaped struct{ c *children }

// Run implements ociruntime.Runner.
func (u unreaped) Run(ctx context.Context, cmd *ociruntime.Command) (int, error) {
	pid, err := u.c.fork(cmd, func(fork func() (int, error)) (int, error) { return fork() })
	if err != nil {
		return -1, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", pid, err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = pidfd.Close() }()
	late := proc.AwaitEnd(ctx, pidfd)
	if late != nil {
		if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil {
			return -1, fmt.Errorf("kill OCI runtime: %w", err)
		}
	}
	var ws syscall.WaitStatus
	for {
		if _, err = syscall.Wait4(pid, &ws, 0, nil); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err = errors.Join(late, err); err != nil {
		return -1, err
	}
	code, _ := decode(uint32(ws))
	return code, nil
}

// decode splits a wait status into exit code and signal.
func decode(status uint32) (code, sig int) {
	ws := syscall.WaitStatus(status)
	if ws.Signaled() {
		return 128 + int(ws.Signal()), int(ws.Signal())
	}
	return ws.ExitStatus(), 0
}
