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
	t := &tree{pids: map[int]uint64{root.pid: root.started}, sessions: map[int]bool{root.pid: true}, group: root.group}
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("kill processes of an exec in container %s: %w", c.id, err)
		}
		killed, err := c.signalTree(ctx, t, root)
		if err == nil {
			err = awaitEnds(ctx, killed)
		}
		closeFiles(killed)
		if err != nil {
			return fmt.Errorf("kill %d processes of an exec in container %s: %w", len(killed), c.id, err)
		}
		if len(killed) == 0 {
			return nil
		}
	}
}

// signalTree sends SIGKILL to the members of a tree and returns their pidfds, which the caller
// closes. The container is frozen meanwhile if possible: a population that forks faster than it is
// looked at would outrun the signals.
func (c *container) signalTree(ctx context.Context, t *tree, root *process) ([]*os.File, error) {
	cgroup := c.record().Cgroup
	thaw := c.hold(ctx, cgroup)
	defer thaw()
	all, err := c.processes(cgroup)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	// What stands for a process in a sandbox (runsc exec) is outside of its cgroup.
	if stat, err := proc.Read(root.pid); err == nil && !slices.ContainsFunc(all, func(s proc.Stat) bool { return s.PID == root.pid }) {
		all = append(all, stat)
	}
	return signalEach(t.members(all))
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
	pidfds, err := signalEach(list)
	defer closeFiles(pidfds)
	if err != nil {
		return err
	}
	return awaitEnds(ctx, pidfds)
}

// signalEach sends SIGKILL to processes and returns pidfds of them, which the caller closes, also
// after an error.
func signalEach(list []proc.Stat) (pidfds []*os.File, err error) {
	for _, s := range list {
		pidfd, err := proc.Open(s.PID, s.Started)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return pidfds, err
		}
		pidfds = append(pidfds, pidfd)
		if err := proc.Signal(pidfd, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			return pidfds, fmt.Errorf("signal process %d: %w", s.PID, err)
		}
	}
	return pidfds, nil
}

// awaitEnds waits until processes have ended.
func awaitEnds(ctx context.Context, pidfds []*os.File) error {
	for _, f := range pidfds {
		if err := proc.AwaitEnd(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
