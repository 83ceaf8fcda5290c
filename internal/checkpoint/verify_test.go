package checkpoint

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestRestoredProcessesAreVerified compares running processes with a spec: what has the rights of the
// spec passes, what has one more is refused.
func TestRestoredProcessesAreVerified(t *testing.T) {
	privilege.Root(t)
	confined := []string{
		"setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--reuid=1000", "--regid=1000", "--groups=1000,2000",
	}
	change := func(old, with string) []string {
		var args []string
		for _, arg := range confined {
			if arg = strings.Replace(arg, old, with, 1); arg != "" {
				args = append(args, arg)
			}
		}
		return args
	}
	noFilter := func(s *specs.Spec) { s.Linux.Seccomp = nil }
	for name, c := range map[string]struct {
		command []string
		spec    func(*specs.Spec)
		refused string
	}{
		"the_same":     {confined, noFilter, ""},
		"capabilities": {change("--bounding-set=-all", "--bounding-set=-sys_admin"), noFilter, "capabilities"},
		"user":         {change("--reuid=1000", "--reuid=1001"), noFilter, "user or group 1001"},
		"group":        {change("--regid=1000", "--regid=6"), noFilter, "user or group 6"},
		"more_groups":  {change("2000", "2000,6"), noFilter, "group 6"},
		"fewer_groups": {change(",2000", ""), noFilter, ""},
		"can_gain": {change("--no-new-privs", ""), func(s *specs.Spec) {
			noFilter(s)
			s.Process.Capabilities.Bounding = []string{"CAP_SETUID", "CAP_SETGID"}
		}, "no_new_privs"},
		"no_filter":        {confined, nil, "seccomp"},
		"no_profile":       {confined, func(s *specs.Spec) { noFilter(s); s.Process.ApparmorProfile = "berth-default" }, "apparmor"},
		"root_of_the_host": {[]string{"env"}, noFilter, "security_context"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append(append([]string(nil), c.command...), "sh", "-c", "echo up; exec cat")
			cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := stdin.Close(); err != nil {
					t.Error(err)
				}
				if err := cmd.Wait(); err != nil {
					t.Error(err)
				}
			}()
			up := make([]byte, 3)
			if _, err := stdout.Read(up); err != nil {
				t.Fatal(err)
			}
			err = VerifyProcesses(t.Context(), []int{cmd.Process.Pid}, grants(c.spec))
			if c.refused == "" && err != nil {
				t.Error(err)
			}
			if c.refused != "" && (!errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), c.refused)) {
				t.Errorf("got %v, want %s refused", err, c.refused)
			}
		})
	}
	ended := exec.CommandContext(t.Context(), "true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	if err := VerifyProcesses(t.Context(), []int{ended.Process.Pid}, grants(nil)); err != nil {
		t.Errorf("a process that has ended: %v", err)
	}
}
