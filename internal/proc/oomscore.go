package proc

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// OwnOOMScore returns the oom_score_adj of this process as it was when it was first asked for.
var OwnOOMScore = sync.OnceValues(func() (int, error) {
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("read own oom_score_adj: %w", err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read own oom_score_adj: %w", err)
	}
	return score, nil
})

// LimitOOMScore gives a process that was just started a oom_score_adj of at least score. A service
// manager protects this process from the OOM killer, and what it starts inherits that. A process that
// has ended is no error.
func LimitOOMScore(pid, score int) error {
	own, err := OwnOOMScore()
	if err != nil || own >= score {
		return err
	}
	err = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(score)), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("set oom_score_adj of process %d to %d: %w", pid, score, err)
	}
	return nil
}
