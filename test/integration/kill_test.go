package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/test/harness"
)

// counter writes numbered lines until it gets a signal, and then ends with 9.
var counter = []string{"sh", "-c", "trap 'exit 9' TERM; i=0; while true; do echo line $i; i=$((i+1)); sleep 0.01; done"}

// TestRestart: a daemon that is stopped or killed and started again finds everything as it was.
func TestRestart(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			eachHandler(t, func(t *testing.T, n *harness.Node) {
				p := n.RunPod()
				running := p.Start(counter)
				ended := p.Start([]string{"sh", "-c", "exit 4"})
				ended.Exited()
				created, err := p.Create(n.ContainerConfig([]string{"sleep", "1000"}))
				if err != nil {
					t.Fatal(err)
				}
				before := picture(p, running, ended, created)
				if err := n.Restart(n.Context(), signal); err != nil {
					t.Fatal(err)
				}
				after := picture(p, running, ended, created)
				for i := range before {
					if !proto.Equal(before[i], after[i]) {
						t.Errorf("before the restart:\n%v\nafter it:\n%v", before[i], after[i])
					}
				}
				equal(t, "a command in the container", running.Output("echo", "there"), "there")
				if err := created.Start(); err != nil {
					t.Errorf("start a container that was created before the restart: %v", err)
				}
				running.Stop(10)
				equal(t, "exit code", running.Status().GetExitCode(), 9)
				wantWholeLog(t, running)
			})
		})
	}
}

// picture is what the API says about a pod and its containers.
func picture(p *harness.Pod, all ...*harness.Container) []proto.Message {
	said := []proto.Message{p.Status()}
	for _, c := range all {
		said = append(said, c.Status())
	}
	return said
}

// wantWholeLog looks for a missing, doubled or torn line.
func wantWholeLog(t *testing.T, c *harness.Container) {
	t.Helper()
	lines := c.LogLines()
	for i, l := range lines {
		if l != fmt.Sprintf("stdout F line %d", i) {
			t.Fatalf("line %d of the log is %q, want line %d; %d lines in all", i, l, i, len(lines))
		}
	}
	if len(lines) == 0 {
		t.Error("the log is empty")
	}
}

// TestExitWhileAway: a container that ends while no daemon runs is reported with its exit code and time by the next one.
func TestExitWhileAway(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		c := p.Start([]string{"sh", "-c", "while ! test -e /tmp/end; do sleep 0.02; done; echo bye; exit 6"})
		pid := containerPID(t, c)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("/proc/"+pid+"/root/tmp/end", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		gone(n, pid)
		if err := n.StartDaemon(n.Context()); err != nil {
			t.Fatal(err)
		}
		s := c.Exited()
		equal(t, "exit code", s.GetExitCode(), 6)
		if s.GetFinishedAt() < s.GetStartedAt() {
			t.Errorf("the container ended at %d and started at %d", s.GetFinishedAt(), s.GetStartedAt())
		}
		n.Eventually("the last line is in the log", func() error { return logHas(c, "stdout F bye") })
	})
}

// gone waits for the end of a process. A zombie has ended.
func gone(n *harness.Node, pid string) {
	n.Eventually("process "+pid+" has ended", func() error {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			return fmt.Errorf("it is %s", stat)
		}
		return nil
	})
}

// TestKillShim: the supervisor is killed again and again. The containers live, no line of their logs is lost, commands work
// afterwards, and exit codes are known.
func TestKillShim(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		c := p.Start(counter)
		quiet := p.Start([]string{"sh", "-c", "trap 'exit 5' TERM; while true; do sleep 0.05; done"})
		shown := p.Start(apart, func(c *runtimeapi.ContainerConfig) { c.Tty = true })
		started := c.Status().GetStartedAt()
		for range 5 {
			lines := len(c.LogLines())
			n.KillShim()
			n.Eventually("another supervisor writes the log", func() error {
				if now := len(c.LogLines()); now <= lines+10 {
					return fmt.Errorf("it has %d lines, it had %d", now, lines)
				}
				return nil
			})
		}
		equal(t, "start time", c.Status().GetStartedAt(), started)
		n.Eventually("commands run again", func() error {
			_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"true"}, Timeout: 10})
			return err
		})
		c.Stop(10)
		quiet.Stop(10)
		wantOrphansExit(t, c, 9)
		wantOrphansExit(t, quiet, 5)
		wantWholeLog(t, c)
		shown.Stop(10)
		wantOrphansExit(t, shown, 9)
		wantWholeLines(t, shown)
	})
}

// apart writes numbered lines, each in two pieces, until it is terminated, and then ends with 9.
var apart = []string{
	"sh", "-c",
	"trap 'exit 9' TERM; i=0; while true; do printf 'line %d' $i; sleep 0.002; printf '\\n'; i=$((i+1)); sleep 0.005; done",
}

// wantWholeLines is wantWholeLog for lines that are logged in pieces where their writer pauses. The last one may be unfinished.
func wantWholeLines(t *testing.T, c *harness.Container) {
	t.Helper()
	var text strings.Builder
	for _, record := range c.LogLines() {
		piece, isPiece := strings.CutPrefix(record, "stdout P ")
		if !isPiece {
			piece = strings.TrimPrefix(record, "stdout F ") + "\n"
		}
		text.WriteString(piece)
	}
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	for i, line := range lines {
		if want := fmt.Sprintf("line %d", i); line != want && i < len(lines)-1 {
			t.Fatalf("line %d of the log is %q, want %q; %d lines in all", i, line, want, len(lines))
		}
	}
	if len(lines) < 10 {
		t.Errorf("the log has %d lines, want ten at least", len(lines))
	}
}

// wantOrphansExit compares the exit code of a container whose supervisor was killed. Before Linux 6.15 it is known only if
// the successor looked before the orphan was reaped; otherwise that must be said.
func wantOrphansExit(t *testing.T, c *harness.Container, code int32) {
	t.Helper()
	s := c.Status()
	if s.GetReason() == "ContainerStatusUnknown" && !kernelKeepsStatus(t) {
		equal(t, "unknown exit code", s.GetExitCode(), 255)
		return
	}
	equal(t, "exit code", s.GetExitCode(), code)
}

// kernelKeepsStatus asks the kernel how a process ended that is reaped already.
func kernelKeepsStatus(t *testing.T) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "true")
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(pidfd), "pidfd")
	defer file.Close()
	_, err := proc.ExitStatus(file, cmd.Process.Pid, 0)
	return err == nil
}

// TestKillShimUnderAParentThatDoesNotReap: what the supervisor leaves behind falls to this test, which reaps no more than a
// PID 1 that was never meant to be one. The first process of a PID namespace then does not become a zombie when it is killed:
// the pod can be stopped and removed all the same, and it is known how its containers ended.
func TestKillShimUnderAParentThatDoesNotReap(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "crun"}) // runc looks for ten seconds whether it has ended
	for _, mode := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER} {
		p := n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode })
		c := p.Start([]string{"sh", "-c", "sleep 1000 & sleep 1001"}, likePod(p))
		left := make(chan struct{})
		go func() { // a process whose parent is the supervisor
			defer close(left)
			_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sleep", "1002"}})
			t.Logf("a command in a container that is killed ends with %v", err)
		}()
		n.Eventually("the command runs", func() error {
			if ps := c.Output("ps", "-o", "args"); !strings.Contains(ps, "sleep 1002") {
				return errors.New(ps)
			}
			return nil
		})
		n.KillShim()
		c.Stop(0)
		<-left
		equal(t, "exit code", c.Status().GetExitCode(), 137)
		p.Stop()
		p.Remove()
	}
}

// TestKillBoth: daemon and supervisor are killed at once, in either order. The containers live and their logs go on.
func TestKillBoth(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start(counter)
		for i := range 4 {
			lines := len(c.LogLines())
			if i%2 == 0 {
				n.KillShim()
			}
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := n.EndShim(unix.SIGKILL); err != nil { // there may be none
				t.Fatal(err)
			}
			if err := n.StartDaemon(n.Context()); err != nil {
				t.Fatal(err)
			}
			n.Eventually("the log goes on", func() error {
				if now := len(c.LogLines()); now <= lines+10 {
					return fmt.Errorf("it has %d lines, it had %d", now, lines)
				}
				return nil
			})
			equal(t, "a command in the container", c.Output("echo", "there"), "there")
		}
		c.Stop(10)
		wantOrphansExit(t, c, 9)
		wantWholeLog(t, c)
	})
}

// TestKillInARow: the daemon is killed while it brings up another supervisor, and the next daemon comes before that one
// serves. There is one supervisor in the end, and it has the container.
func TestKillInARow(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	c := n.RunPod().Start(counter)
	for range 6 {
		n.KillShim()
		n.KillDaemon()
		n.KillDaemon()
		equal(t, "a command in the container", c.Output("echo", "there"), "there")
	}
	c.Stop(10)
	wantOrphansExit(t, c, 9)
	wantWholeLog(t, c)
}

// TestKillDuringRequests: the daemon is killed at many moments while pods are made and removed. Whatever it was doing, it
// starts again, the same requests succeed, and nothing is left in the end, which the leak check sees.
func TestKillDuringRequests(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	for i := range 24 {
		done := make(chan struct{})
		sandbox := n.PodConfig()
		container := n.ContainerConfig([]string{"sleep", "1000"})
		go func() {
			defer close(done)
			makePod(n, sandbox, container)
		}()
		// Neither early nor late in particular: every run kills at other moments.
		time.Sleep(time.Duration(i*7) * time.Millisecond)
		n.KillDaemon()
		<-done
		n.Eventually("the pod can be made after all", func() error { return makeAgain(n, sandbox) })
	}
	for _, id := range sandboxes(t, n, nil) {
		if _, err := n.Runtime.RemovePodSandbox(n.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	}
}

// makePod goes as far as it gets: the daemon may be killed under each call.
func makePod(n *harness.Node, sandbox *runtimeapi.PodSandboxConfig, container *runtimeapi.ContainerConfig) {
	if err := os.MkdirAll(sandbox.GetLogDirectory(), 0o755); err != nil {
		return
	}
	pod, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		return
	}
	made, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod.GetPodSandboxId(), Config: container, SandboxConfig: sandbox,
	})
	if err != nil {
		return
	}
	if _, err := n.Runtime.StartContainer(n.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		return
	}
	if _, err := n.Runtime.StopPodSandbox(n.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.GetPodSandboxId()}); err != nil {
		return
	}
}

// makeAgain does what kubelet does: it looks for the sandbox, and asks for one with the next attempt if there is none.
func makeAgain(n *harness.Node, sandbox *runtimeapi.PodSandboxConfig) error {
	list, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: sandbox.GetLabels()},
	})
	if err != nil {
		return err
	}
	ready := slices.ContainsFunc(list.GetItems(), func(p *runtimeapi.PodSandbox) bool {
		return p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
	})
	if ready {
		return nil
	}
	sandbox.Metadata.Attempt++
	_, err = n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	return err
}

// TestTornRecord: a record of a pod that cannot be read stops neither the daemon nor any other pod, stays visible, and can
// be removed.
func TestTornRecord(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	torn, whole := n.RunPod(), n.RunPod()
	c := whole.Start([]string{"sleep", "1000"})
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	record := n.Config.Root + "/pods/" + torn.ID + "/pod.json"
	data, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, data[:len(data)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(n.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "a command in the other pod", c.Output("echo", "there"), "there")
	if !slices.Contains(sandboxes(t, n, nil), torn.ID) {
		t.Error("the pod whose record is torn is not listed any more")
	}
	torn.Remove()
	if slices.Contains(sandboxes(t, n, nil), torn.ID) {
		t.Error("the pod whose record is torn is listed after its removal")
	}
}
