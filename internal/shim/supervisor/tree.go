package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/proc"
)

// killTimeout bounds the killing of one exec's processes.
const killTimeout = 20 * time.Second

// killTree kills a process, its descendants, its process group, and everything in
// the sessions that any of them leads, and returns when none is left. A descendant
// whose parent has gone is a child of the container's init, hence sessions and
// group: runc makes an exec'd process the leader of a session, crun leaves it in
// the process group of the crun that was started for it.
func (c *container) killTree(ctx context.Context, root *process) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	cgroup := c.record().Cgroup
	t := &tree{pids: map[int]uint64{root.pid: root.started}, sessions: map[int]bool{root.pid: true}, group: root.group}
	for {
		all, err := c.processes(cgroup)
		if err != nil {
			return fmt.Errorf("list processes of container %s: %w", c.id, err)
		}
		// What stands for a process in a sandbox (runsc exec) is outside of its cgroup.
		if stat, err := proc.Read(root.pid); err == nil && !slices.ContainsFunc(all, func(s proc.Stat) bool { return s.PID == root.pid }) {
			all = append(all, stat)
		}
		alive := t.members(all)
		if len(alive) == 0 {
			return nil
		}
		if err := killAndWait(ctx, alive); err != nil {
			return fmt.Errorf("kill %d processes of an exec in container %s: %w", len(alive), c.id, err)
		}
	}
}

// processes lists those of the container's cgroup, or of the host when it has none.
func (c *container) processes(cgroup string) ([]proc.Stat, error) {
	var pids []int
	var err error
	if cgroup != "" {
		pids, err = c.s.cfg.Cgroups.Procs(cgroup, true)
	} else {
		pids, err = allProcesses()
	}
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errdefs.IsNotFound(err) {
			return nil, nil // the cgroup went with its last process
		}
		return nil, err
	}
	stats := make([]proc.Stat, 0, len(pids))
	for _, pid := range pids {
		stat, err := proc.Read(pid)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		stats = append(stats, stat)
	}
	return stats, nil
}

func allProcesses() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// tree is what is known of the processes to kill; it only grows.
type tree struct {
	pids     map[int]uint64 // by ID, with their start times
	sessions map[int]bool
	group    int
}

// members adds the processes of all that belong to the tree and returns the living ones.
func (t *tree) members(all []proc.Stat) []proc.Stat {
	belongs := func(s proc.Stat) bool {
		if started, known := t.pids[s.PID]; known {
			return started == 0 || started == s.Started
		}
		_, child := t.pids[s.Parent]
		return child || t.sessions[s.Session] || t.group != 0 && t.group == s.Group
	}
	var alive []proc.Stat
	for grown := true; grown; {
		grown, alive = false, alive[:0]
		for _, s := range all {
			if !belongs(s) {
				continue
			}
			if _, known := t.pids[s.PID]; !known {
				t.pids[s.PID], grown = s.Started, true
			}
			if s.Session == s.PID && !t.sessions[s.PID] {
				t.sessions[s.PID], grown = true, true
			}
			if !s.Dead() {
				alive = append(alive, s)
			}
		}
	}
	return alive
}

// killAndWait kills processes and waits until they have ended.
func killAndWait(ctx context.Context, list []proc.Stat) error {
	var pidfds []*os.File
	defer func() {
		for _, f := range pidfds {
			_ = f.Close()
		}
	}()
	for _, s := range list {
		pidfd, err := proc.Open(s.PID, s.Started)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		pidfds = append(pidfds, pidfd)
		if err := proc.Signal(pidfd, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("signal process %d: %w", s.PID, err)
		}
	}
	for _, f := range pidfds {
		if err := proc.AwaitEnd(ctx, f); err != nil {
			return err
		}
	}
	return nil
}
