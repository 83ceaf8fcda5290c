package pod

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// maxScoreRounds bounds how often the processes of a container are gone through
// for those that were born meanwhile.
const maxScoreRounds = 8

// oomScore is the oom_score_adj of the container's first process, 0 if that
// has ended.
func (c *container) oomScore() (int, error) {
	c.mu.Lock()
	pid := c.rec.PID
	c.mu.Unlock()
	score, err := readOOMScore(pid)
	if processGone(err) {
		return 0, nil
	}
	return score, err
}

// setOOMScore gives the score to every process of the container that has the
// one of its first process; what a process has set for itself stays. OCI
// runtimes can set the score of a new process only.
func (c *container) setOOMScore(score int) error {
	old, err := c.oomScore()
	if err != nil || old == score {
		return err
	}
	for range maxScoreRounds {
		pids, err := c.engine.opts.Cgroups.Procs(c.rec.CgroupPath, true)
		if err != nil {
			return err
		}
		changed, err := changeOOMScores(pids, old, score)
		if err != nil {
			_, undoErr := changeOOMScores(pids, score, old)
			return errors.Join(err, undoErr)
		}
		if !changed {
			break
		}
	}
	return nil
}

// changeOOMScores changes the score of those that have old, and reports whether
// there was one.
func changeOOMScores(pids []int, old, score int) (changed bool, err error) {
	// The first process is the oldest: it is changed last, for it tells what is old.
	slices.Sort(pids)
	for _, pid := range slices.Backward(pids) {
		has, err := readOOMScore(pid)
		if err == nil && has == old {
			changed = true
			err = os.WriteFile(oomScoreFile(pid), []byte(strconv.Itoa(score)), 0)
		}
		if err != nil && !processGone(err) {
			return changed, fmt.Errorf("linux.resources.oom_score_adj %d of process %d: %w", score, pid, err)
		}
	}
	return changed, nil
}

func oomScoreFile(pid int) string { return fmt.Sprintf("/proc/%d/oom_score_adj", pid) }

func readOOMScore(pid int) (int, error) {
	text, err := os.ReadFile(oomScoreFile(pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func processGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}
