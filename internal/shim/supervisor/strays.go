package supervisor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/proc"
)

// endRuntimes ends the OCI runtimes that are at work for the containers whose
// directories begin with prefix. Nobody else does: crun leaves its process group, so
// that killing the one that was started misses it; and those of a predecessor have
// PR_SET_PDEATHSIG, but a killed process gives up its locks before the kernel sends
// that signal. A runtime is known by its arguments: a path in here. So is for a moment
// what it has started, until that executes its own program: crun does not wait for it.
// What is on record as started is none of them.
func (s *Supervisor) endRuntimes(ctx context.Context, prefix string, started map[int]uint64) error {
	ctx, cancel := context.WithTimeout(ctx, leftoverTimeout)
	defer cancel()
	// One may fork, and end or be killed, after a look has come past its child's place: so
	// crun does once, when it leaves its group. A second look finds the child.
	for looks := 0; looks < 2; looks++ {
		atWork, err := runtimesAtWork(prefix, started)
		if err != nil {
			return fmt.Errorf("look for OCI runtimes at work: %w", err)
		}
		if len(atWork) == 0 {
			continue
		}
		looks = -1
		s.log.Info("end OCI runtimes that nobody waits for", "count", len(atWork))
		if err := killAndWait(ctx, atWork); err != nil {
			return err
		}
	}
	return nil
}

func runtimesAtWork(prefix string, started map[int]uint64) ([]proc.Stat, error) {
	pids, err := allProcesses()
	if err != nil {
		return nil, err
	}
	mark := []byte(prefix)
	var atWork []proc.Stat
	for _, pid := range pids {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || pid == os.Getpid() || !bytes.Contains(line, mark) ||
			!bytes.Contains(line, []byte("\x00--pid-file\x00")) && !bytes.Contains(line, []byte("\x00wait\x00")) {
			continue // it is none, or it has ended
		}
		if stat, err := proc.Read(pid); err == nil && !stat.Dead() && started[pid] != stat.Started {
			atWork = append(atWork, stat)
		}
	}
	return atWork, nil
}

// recorded are the processes that a predecessor had started and written down, with
// their start times.
func (s *Supervisor) recorded() map[int]uint64 {
	all := map[int]uint64{}
	for _, c := range s.containers {
		rec := c.record()
		all[rec.PID] = rec.Started
		execs, err := filepath.Glob(filepath.Join(c.dir, execPrefix+"*"))
		if err != nil {
			s.log.Error("list execs", "container", c.id, "error", err)
		}
		for _, dir := range execs {
			if rec, err := loadExec(dir); err == nil { // else it was cut off
				all[rec.PID] = rec.Started
			}
		}
	}
	return all
}

// killStrays kills exec'd processes that nobody knows: their OCI runtime was
// killed before it could say their ID. Such a process is in the container's
// cgroup and PID namespace, but its parent is outside of both. Where the
// container has no PID namespace of its own that says nothing, and none is killed.
func (c *container) killStrays(ctx context.Context) error {
	host, err := pidNamespace(os.Getpid())
	if err != nil {
		return err
	}
	if own, err := pidNamespace(c.init.pid); err != nil || own == host {
		return nil //nolint:nilerr // its init has ended, and all with it
	}
	known := map[int]bool{c.init.pid: true}
	c.mu.Lock()
	for _, e := range c.execs {
		known[e.process.pid] = true
	}
	c.mu.Unlock()
	all, err := c.processes(c.record().Cgroup)
	if err != nil {
		return err
	}
	for _, s := range all {
		if known[s.PID] || s.Dead() {
			continue
		}
		if outside, err := pidNamespace(s.Parent); err != nil || outside != host {
			continue
		}
		c.s.log.Info("kill an exec whose start was cut off", "container", c.id, "pid", s.PID)
		// It may still be the runtime's: then its process group is, too, but nobody else's.
		err := c.killTree(ctx, &process{pid: s.PID, started: s.Started})
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func pidNamespace(pid int) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
}
