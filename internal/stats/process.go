package stats

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/cgroup"
)

// Processes is what the processes of a cgroup hold open.
type Processes struct {
	// Descriptors is the number of file descriptors, Sockets that of those
	// which are sockets.
	Descriptors, Sockets uint64
	// Hidden tells that the descriptors of some process may not be looked at,
	// so that the numbers above mean nothing.
	Hidden bool
}

// ReadProcesses looks at every process of the cgroup at path and of those below
// it. It makes a system call for each descriptor, so it is for those who ask
// every few seconds at most; it ends when ctx does.
func ReadProcesses(ctx context.Context, host *cgroup.Host, path string) (Processes, error) {
	dir, _ := host.Dir(accountant(host), path)
	r := &reader{}
	var p Processes
	for _, pid := range r.pidsOf(dir) {
		if err := ctx.Err(); err != nil {
			return Processes{}, fmt.Errorf("look at processes of cgroup %s: %w", path, err)
		}
		if err := p.add(pid); err != nil {
			return Processes{}, fmt.Errorf("look at processes of cgroup %s: %w", path, err)
		}
	}
	if r.err != nil {
		return Processes{}, fmt.Errorf("list processes of cgroup %s: %w", path, r.err)
	}
	return p, nil
}

// pidsOf lists the processes of a cgroup and of those below it. Those outside
// our PID namespace, which the kernel shows as 0, are left out.
func (r *reader) pidsOf(dir string) []string {
	var pids []string
	for line := range strings.Lines(r.text(dir, "cgroup.procs")) {
		if pid := strings.TrimSpace(line); pid != "0" {
			pids = append(pids, pid)
		}
	}
	for _, child := range r.children(dir) {
		pids = append(pids, r.pidsOf(child)...)
	}
	return pids
}

// add counts what one process holds open. One that has ended holds nothing.
func (p *Processes) add(pid string) (err error) {
	dir, err := os.Open(filepath.Join("/proc", pid, "fd"))
	if gone(err) {
		return nil
	}
	if errors.Is(err, fs.ErrPermission) {
		p.Hidden = true
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	names, err := dir.Readdirnames(-1)
	if err != nil && !gone(err) {
		return err
	}
	p.Descriptors += uint64(len(names))
	var target [len(socketPrefix)]byte
	for _, name := range names {
		n, err := unix.Readlinkat(int(dir.Fd()), name, target[:])
		switch {
		case err == nil && string(target[:n]) == socketPrefix:
			p.Sockets++
		case errors.Is(err, fs.ErrPermission):
			p.Hidden = true
		}
	}
	return nil
}

// socketPrefix is how the link of a descriptor begins that is a socket.
const socketPrefix = "socket:["

// gone tells whether err means that a process has ended.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// OpenFilesLimit returns how many files a process may have open, its soft
// limit; 0 if it has ended.
func OpenFilesLimit(pid int) (uint64, error) {
	text, err := readFile(fmt.Sprintf("/proc/%d/limits", pid))
	if gone(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read limits of process %d: %w", pid, err)
	}
	for line := range strings.Lines(text) {
		values, ok := strings.CutPrefix(line, "Max open files")
		if soft := strings.Fields(values); ok && len(soft) > 0 {
			number, err := strconv.ParseUint(soft[0], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read limits of process %d: %w", pid, err)
			}
			return number, nil
		}
	}
	return 0, nil
}
