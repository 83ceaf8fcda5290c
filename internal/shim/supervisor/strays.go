package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/proc"
)

// endRuntimes ends the OCI runtimes that are at work for the containers whose directories begin with
// prefix, but for those that are spared. Nothing else does: crun leaves its process group, so that
// killing the one that was started misses it; and those of a predecessor have PR_SET_PDEATHSIG, but a
// killed process gives up its locks before the kernel sends that signal.
func (s *Supervisor) endRuntimes(ctx context.Context, prefix string, spared func(proc.Stat) bool) error {
	ctx, cancel := context.WithTimeout(ctx, leftoverTimeout)
	defer cancel()
	// One may fork, and end or be killed, after a look has come past its child's place: so
	// crun does once, when it leaves its group. A second look finds the child.
	for looks := 0; looks < 2; looks++ {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("end OCI runtimes: %w", err)
		}
		atWork, err := s.runtimesAtWork(prefix, spared)
		if err != nil {
			return fmt.Errorf("look for OCI runtimes at work: %w", err)
		}
		if len(atWork) == 0 {
			continue
		}
		looks = -1
		s.log.Info("orphaned OCI runtimes killed", "count", len(atWork))
		if err := killAndWait(ctx, atWork); err != nil {
			return fmt.Errorf("end OCI runtimes: %w", err)
		}
	}
	return nil
}

func spareNone(proc.Stat) bool { return false }

// runtimesAtWork finds OCI runtimes by their arguments: a path below prefix, and what is given only
// to a runtime that stays at work. Arguments can be forged, so only processes that no container and
// no unprivileged user can be are looked at.
func (s *Supervisor) runtimesAtWork(prefix string, spared func(proc.Stat) bool) ([]proc.Stat, error) {
	pids, err := s.ownProcesses()
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
		if stat, err := proc.Read(pid); err == nil && !stat.Dead() && !spared(stat) {
			atWork = append(atWork, stat)
		}
	}
	return atWork, nil
}

// ownProcesses are those of this supervisor and of its predecessors: they are in its cgroup in every
// hierarchy, where the OCI runtimes that it starts remain and their containers do not. Without such
// a cgroup they are those of the host's root.
func (s *Supervisor) ownProcesses() ([]int, error) {
	if !s.joined {
		pids, err := allProcesses()
		return slices.DeleteFunc(pids, func(pid int) bool { return !proc.IsHostRoot(pid) }), err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	pids, err := s.cfg.Cgroups.Procs(s.cfg.Cgroup, false)
	return slices.DeleteFunc(pids, func(pid int) bool {
		cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		return err != nil || !bytes.Equal(cgroups, own)
	}), err
}

// sweep ends the OCI runtimes of a predecessor. The first look is over when it returns, before this
// process starts any itself, and what it found is killed; nothing has to wait for the rest.
func (s *Supervisor) sweep(ctx context.Context, prefix string) {
	spared := s.recorded()
	atWork, err := s.runtimesAtWork(prefix, spared)
	var killed []*os.File
	if err == nil {
		killed, err = signalEach(atWork)
	}
	if len(killed) > 0 {
		s.log.Info("OCI runtimes of a predecessor killed", "count", len(killed))
	}
	s.wg.Go(func() {
		defer close(s.swept)
		ctx, cancel := context.WithTimeout(ctx, leftoverTimeout)
		defer cancel()
		err := errors.Join(err, awaitEnds(ctx, killed))
		closeFiles(killed)
		err = errors.Join(err, s.endRuntimes(ctx, prefix, func(stat proc.Stat) bool {
			return spared(stat) || descends(stat, os.Getpid())
		}))
		if err != nil {
			s.log.Error("OCI runtimes of a predecessor not ended", "error", err)
		}
	})
}

// descends tells whether a process is a descendant of another.
func descends(stat proc.Stat, ancestor int) bool {
	const generations = 16
	for range generations {
		if stat.Parent == ancestor {
			return true
		}
		parent, err := proc.Read(stat.Parent)
		if err != nil {
			return false
		}
		stat = parent
	}
	return false
}

// recorded tells whether a process is on record as started by a predecessor. Until it executes its own
// program, it has the arguments of its OCI runtime: crun does not wait for that.
func (s *Supervisor) recorded() func(proc.Stat) bool {
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
	return func(stat proc.Stat) bool {
		started, found := all[stat.PID]
		return found && started == stat.Started
	}
}

// killStrays kills exec'd processes without a record: their OCI runtime was
// killed before it could say their ID. Such a process is in the container's
// cgroup and PID namespace, but its parent is outside of both. Where the
// container has no PID namespace of its own that says nothing, and none is killed.
// Preconditions: no exec is being started.
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
		// It may still be the runtime's: then its process group is, too, but no other one's.
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
