// Package criu checks for tests whether CRIU works on this machine. Where it does,
// containers must be checkpointed and restored; where it does not, the refusal
// must have the reason.
package criu

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// checkTimeout bounds `criu check`.
const checkTimeout = 30 * time.Second

// Works returns whether CRIU works with this kernel, and logs why not.
func Works(t testing.TB) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "criu", "check").CombinedOutput()
	if _, missing := exec.LookPath("criu"); missing != nil {
		t.Fatalf("criu is missing: apt-get install criu: %v", missing)
	}
	if err != nil {
		t.Logf("CRIU does not work on this machine, so only refusals are tested: %s", strings.TrimSpace(string(out)))
		return false
	}
	return true
}
