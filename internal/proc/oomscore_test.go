package proc

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestLimitOOMScore raises the score of a child, and lowers none.
func TestLimitOOMScore(t *testing.T) {
	own, err := OwnOOMScore()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ score, want int }{{own - 1, own}, {own, own}, {own + 7, own + 7}} {
		if err := LimitOOMScore(cmd.Process.Pid, tc.score); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(string(text)); got != strconv.Itoa(tc.want) {
			t.Errorf("limit to %d: the score is %s, want %d", tc.score, got, tc.want)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
	if err := LimitOOMScore(cmd.Process.Pid, own+8); err != nil {
		t.Errorf("a process that has ended: %v", err)
	}
}

// TestIsHostRoot: a process with other namespaces or another user is none, whatever its arguments are.
func TestIsHostRoot(t *testing.T) {
	privilege.Root(t)
	for name, tc := range map[string]struct {
		command []string
		want    bool
	}{
		"root":            {[]string{"sleep", "1000"}, true},
		"another user":    {[]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "1000"}, false},
		"mount namespace": {[]string{"unshare", "--mount", "sleep", "1000"}, false},
		"PID namespace":   {[]string{"unshare", "--pid", "--fork", "--kill-child", "sleep", "1000"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), tc.command[0], tc.command[1:]...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Wait() }() // killed below
			defer func() { _ = cmd.Process.Kill() }()
			pid := cmd.Process.Pid
			for { // until the last program is executed
				last := pid
				if children, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(pid) + "/children"); err == nil && len(children) > 0 {
					child, err := strconv.Atoi(strings.Fields(string(children))[0])
					if err != nil {
						t.Fatal(err)
					}
					last = child
				}
				line, err := os.ReadFile("/proc/" + strconv.Itoa(last) + "/cmdline")
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(string(line), "sleep\x00") {
					pid = last
					break
				}
			}
			if got := IsHostRoot(pid); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
	if IsHostRoot(1 << 30) {
		t.Error("a process that does not exist is one")
	}
}
