package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// crictlDeadline bounds one call of crictl.
const crictlDeadline = time.Minute

// crictlProgram builds crictl, which is pinned in tools/go.mod, unless the build cache has it.
var crictlProgram = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "tool", "-modfile=../../tools/go.mod", "-n", "crictl")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build crictl: %w: %s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
})

func crictl(ctx context.Context, t *testing.T, n *harness.Node, args ...string) *exec.Cmd {
	t.Helper()
	program, err := crictlProgram()
	if err != nil {
		t.Fatal(err)
	}
	endpoint := n.Config.Listen
	return exec.CommandContext(ctx, program, append([]string{"--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "30s"}, args...)...)
}

// TestCrictl: the tool of the Kubernetes project works with Berth as with any runtime.
func TestCrictl(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*crictlDeadline)
	defer cancel()
	run := func(stdin string, args ...string) string {
		t.Helper()
		cmd := crictl(ctx, t, n, args...)
		cmd.Stdin = strings.NewReader(stdin)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Errorf("crictl %v: %v: %s", args, err, stderr.Bytes())
		}
		return stdout.String()
	}
	has := func(out, words string) {
		t.Helper()
		if !strings.Contains(out, words) {
			t.Errorf("output is %q, want %q in it", out, words)
		}
	}
	has(run("", "pull", n.Image), "sha256:")
	has(run("", "images"), "busybox")
	p := n.RunPod()
	web(p)
	c := p.Start([]string{"sh"}, func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	has(run("", "pods"), p.Config.GetMetadata().GetName())
	has(run("", "ps"), c.Config.GetMetadata().GetName())
	has(run("", "inspect", c.ID), c.ID)
	has(run("", "inspectp", p.ID), p.ID)
	has(run("", "info"), "RuntimeReady")
	has(run("", "version"), "v1")
	has(run("", "exec", "--sync", c.ID, "hostname"), p.Config.GetHostname())
	has(run("", "exec", c.ID, "echo", "over a stream"), "over a stream")
	has(run("through\n", "exec", "-i", c.ID, "cat"), "through")
	has(run("", "stats"), c.ID[:13])
	has(run("echo attached\n", "attach", "-i", c.ID), "attached")
	c.Exited()
	n.Eventually("the log has what was said", func() error { return logHas(c, "stdout F attached") })
	has(run("", "logs", c.ID), "attached")

	fetch(n, t, net.JoinHostPort(p.IP(), "8080")) // it listens
	forward := crictl(ctx, t, n, "port-forward", p.ID, ":8080")
	out, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Errorf("read where crictl listens: %v", err)
	}
	var port int
	if _, err := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d ->", &port); err != nil {
		t.Errorf("crictl port-forward says %q: %v", line, err)
	} else {
		equal(t, "the page", fetch(n, t, fmt.Sprintf("127.0.0.1:%d", port)), p.Config.GetHostname())
	}
	if err := forward.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	_ = forward.Wait() // it ends by the signal

	run("", "stopp", p.ID)
	run("", "rmp", p.ID)
	run("", "rmi", n.Image)
}
