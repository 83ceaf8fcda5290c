package integration

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestExecSync: both streams apart, the exit code, the environment and user of the container.
func TestExecSync(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b")}}
			c.Linux.SecurityContext.RunAsUsername = "user"
		})
		answer := c.Exec("sh", "-c", "echo out; echo err >&2; exit 5")
		equal(t, "stdout", string(answer.GetStdout()), "out\n")
		equal(t, "stderr", string(answer.GetStderr()), "err\n")
		equal(t, "exit code", answer.GetExitCode(), 5)
		equal(t, "environment and user", c.Output("sh", "-c", "echo $A $(id -u) $(id -G)"), "b 1000 1000 29 50000")
		// A signal's exit code is the shell's.
		equal(t, "exit code after SIGKILL", c.Exec("sh", "-c", "kill -9 $$").GetExitCode(), 137)
	})
}

// TestExecSyncTimeout: after the timeout the answer is DeadlineExceeded, the command and all its children are gone, and
// the container lives.
func TestExecSyncTimeout(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"sleep", "1000"})
		_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{
			ContainerId: c.ID, Timeout: 1,
			Cmd: []string{"sh", "-c", "setsid sleep 4711 & sleep 4712 & trap '' TERM; sleep 4713; sleep 4714"},
		})
		wantError(t, err, codes.DeadlineExceeded)
		if cause := "timed out after 1s: context deadline exceeded"; !strings.HasSuffix(err.Error(), cause) {
			t.Errorf("the error is %v, want nothing after %q", err, cause)
		}
		n.Eventually("no process of the command is left", func() error {
			if ps := c.Output("ps", "-o", "args"); strings.Contains(ps, "sleep 471") {
				return fmt.Errorf("there are %q", ps)
			}
			return nil
		})
		equal(t, "state of the container", c.Status().GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	})
}

// TestExecSyncOutput: what is more than the limit is discarded, and the command does not block on it.
func TestExecSyncOutput(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	c := n.RunPod().Start([]string{"sleep", "1000"})
	_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{
		ContainerId: c.ID, Cmd: []string{"sh", "-c", "head -c 20000000 /dev/zero; echo end >&2"},
	})
	// 16 MiB and the rest of the answer are more than a client accepts by default; what matters is that it is bounded.
	if err != nil {
		wantError(t, err, codes.ResourceExhausted)
	}
	answer := c.Exec("sh", "-c", "head -c 1000000 /dev/zero; echo end >&2; exit 3")
	if len(answer.GetStdout()) != 1000000 || bytes.ContainsFunc(answer.GetStdout(), func(r rune) bool { return r != 0 }) {
		t.Errorf("stdout has %d bytes, want 1000000 zeros", len(answer.GetStdout()))
	}
	equal(t, "stderr", string(answer.GetStderr()), "end\n")
	equal(t, "exit code", answer.GetExitCode(), 3)
}

// TestExecSyncBackground: a child which keeps the output open does not keep the answer back for ever.
func TestExecSyncBackground(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"sleep", "1000"})
		answer, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{
			ContainerId: c.ID, Timeout: 20, Cmd: []string{"sh", "-c", "sleep 4715 & echo done"},
		})
		if err != nil {
			t.Fatalf("run a command which leaves a child: %v", err)
		}
		equal(t, "stdout", string(answer.GetStdout()), "done\n")
		equal(t, "state of the container", c.Status().GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	})
}

// TestExecInWrongPlace: no command runs where no container runs.
func TestExecInWrongPlace(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	c := p.Start([]string{"true"})
	c.Exited()
	for _, call := range []struct {
		name, id string
		command  []string
		code     codes.Code
	}{
		{"exited", c.ID, []string{"true"}, codes.FailedPrecondition},
		{"unknown", "nope", []string{"true"}, codes.NotFound},
		{"no-command", c.ID, nil, codes.InvalidArgument},
	} {
		t.Run(call.name, func(t *testing.T) {
			_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: call.id, Cmd: call.command, Timeout: 10})
			wantError(t, err, call.code)
		})
	}
	running := p.Start([]string{"sleep", "1000"})
	_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: running.ID, Cmd: []string{"/no/such/program"}, Timeout: 10})
	if err == nil {
		t.Error("running a program which is not there succeeds, want an error")
	}
}

// TestStreamsThatNobodyAskedFor: they are /dev/null, which any user can read, write and open again.
func TestStreamsThatNobodyAskedFor(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		asUser := func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		}
		const input = "cat && cat </proc/self/fd/0 && echo read"
		plain, users := n.RunPod(), n.RunPod(userNamespace)
		for _, c := range []*harness.Container{
			plain.Start([]string{"sh", "-c", input + "; exec sleep 1000"}, asUser),
			users.Start([]string{"sh", "-c", input + "; exec sleep 1000"}, asUser, likePod(users)),
		} {
			n.Eventually("it has read", func() error { return logHas(c, "stdout F read") })
			equal(t, "a command", c.Output("sh", "-c", input), "read")
			var said buffer
			address := execURL(t, n, &runtimeapi.ExecRequest{
				ContainerId: c.ID, Stdout: true, Cmd: []string{"sh", "-c", input + " && echo x >&2 && echo x >/proc/self/fd/2 && echo written"},
			})
			if err := session(t, address, remotecommand.StreamOptions{Stdout: &said}); err != nil {
				t.Errorf("the session ends with %v", err)
			}
			equal(t, "a session", said.String(), "read\nwritten\n")
		}
	})
}
