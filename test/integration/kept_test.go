package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestKillBothManaged: daemon and supervisor are killed at once, over and over, while the service manager keeps a third copy
// of their descriptors. A container with a terminal is not hung up, one with an open stdin reads no end of it, one that ends
// meanwhile loses neither its last words nor its exit code. No child gets what was handed over, and in the end the store is empty.
func TestKillBothManaged(t *testing.T) {
	for _, handler := range []string{"crun", "runc"} {
		t.Run(handler, func(t *testing.T) {
			n := harness.Start(t, harness.Options{Handler: handler, Managed: true})
			p := n.RunPod()
			shell := p.Start([]string{"sh", "-c", "trap 'echo hung up' HUP; trap 'exit 9' TERM; while true; do read word && echo got $word; done"},
				func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true })
			reader := p.Start([]string{"sh", "-c", "cat; exit 6"}, func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
			// Of the shell its pidfd, its terminal and the FIFO behind that, of the reader its pidfd, its stdin and both
			// streams of its output.
			n.Eventually("everything is in the store", func() error { return keeps(n, 7) })
			for range 3 {
				ending := p.Start([]string{"sh", "-c", "while ! test -e /tmp/end; do sleep 0.02; done; echo bye; exit 7"})
				killBoth(t, n, ending)
				ending.Exited()
				wantOrphansExit(t, ending, 7)
				n.Eventually("the last words are in the log", func() error { return logHas(ending, "stdout F bye") })
				talk(t, n, shell)
				ending.Remove()
			}
			wantNothingInherited(t, n)
			attached := exec.CommandContext(n.Context(), n.Program("berth"), "--endpoint", n.Config.Listen, "attach", "-i", reader.ID)
			attached.Stdin = strings.NewReader("still open\n")
			if out, err := attached.CombinedOutput(); string(out) != "still open\n" {
				t.Errorf("the reader answers %q, %v, want what it read", out, err)
			}
			equal(t, "exit code of the reader", reader.Exited().GetExitCode(), 6)
			shell.Stop(10)
			wantOrphansExit(t, shell, 9)
			for _, line := range shell.LogLines() {
				if strings.Contains(line, "hung up") {
					t.Errorf("the log says %q", line)
				}
			}
			p.Remove()
			n.Eventually("the store is empty", func() error { return keeps(n, 0) })
		})
	}
}

// keeps compares how many descriptors the service manager has.
func keeps(n *harness.Node, want int) error {
	if kept := n.Manager.Kept(); len(kept) != want {
		return fmt.Errorf("it has %q, want %d", kept, want)
	}
	return nil
}

// killBoth kills daemon and supervisor, lets a container end meanwhile, and starts the daemon.
func killBoth(t *testing.T, n *harness.Node, ending *harness.Container) {
	t.Helper()
	pid := containerPID(t, ending)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	n.KillShim()
	if err := os.WriteFile("/proc/"+pid+"/root/tmp/end", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	gone(n, pid)
	if err := n.StartDaemon(n.Context()); err != nil {
		t.Fatal(err)
	}
}

// talk attaches to a container's terminal, says a word and reads the answer.
func talk(t *testing.T, n *harness.Node, c *harness.Container) {
	t.Helper()
	p := sit(t, n, 80, 24, "attach", c.ID)
	p.types(t, "hello\n")
	p.screen.contains(n, "got hello")
	p.types(t, "\x10\x11") // Ctrl-P Ctrl-Q
	equal(t, "exit code of leaving", p.leaves(t), 0)
}

// wantNothingInherited looks at the programs that the daemon has started: berth-shim, and what that has.
func wantNothingInherited(t *testing.T, n *harness.Node) {
	t.Helper()
	pid, err := n.ShimPID()
	if err != nil || pid == 0 {
		t.Fatalf("find berth-shim: %d, %v", pid, err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"LISTEN_", "FDSTORE", "NOTIFY_SOCKET"} {
		if strings.Contains(string(env), name) {
			t.Errorf("berth-shim has %s in its environment", name)
		}
	}
	// Descriptor 3 is the pipe over which berth-shim reports, which it has closed. It opens its own with close-on-exec.
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		info, err := os.ReadFile(file)
		if err != nil {
			continue // closed meanwhile
		}
		var flags int
		for line := range strings.Lines(string(info)) {
			_, _ = fmt.Sscanf(line, "flags: %o", &flags)
		}
		if fd := filepath.Base(file); flags&unix.O_CLOEXEC == 0 && fd != "0" && fd != "1" && fd != "2" {
			t.Errorf("descriptor %s of berth-shim, which is not closed on exec, may have been inherited:\n%s", fd, info)
		}
	}
}
