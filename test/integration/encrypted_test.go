package integration

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

// TestEncryptedStreams: with TLS on, client-go over both protocols, crictl and berth have sessions, when they trust the
// certificate that the daemon has made; it is the same one after a restart.
func TestEncryptedStreams(t *testing.T) {
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) { c.Stream.TLS = true }})
	ca, key, _ := n.Config.TLSFiles()
	c := n.RunPod().Start([]string{"sleep", "1000"})
	request := &runtimeapi.ExecRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Cmd: []string{"sh", "-c", "cat; exit 4"}}
	for _, protocol := range []string{"spdy", "websocket", "spdy after a restart"} {
		if protocol == "spdy after a restart" {
			if err := n.Restart(n.Context(), unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		var stdout buffer
		executor := executorFor(t, strings.Fields(protocol)[0], execURL(t, n, request), rest.TLSClientConfig{CAFile: ca})
		err := executor.StreamWithContext(n.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("secret"), Stdout: &stdout})
		var exit utilexec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 4 || stdout.String() != "secret" {
			t.Errorf("%s: session ends with %v and output %q, want exit code 4 and all output", protocol, err, stdout.String())
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*crictlDeadline)
	defer cancel()
	// crictl trusts only if it has a certificate to show as well, whatever it is.
	for _, transport := range []string{"spdy", "websocket"} {
		out, err := crictl(ctx, t, n, "exec", "--tls-ca", ca, "--tls-cert", ca, "--tls-key", key, "--transport", transport, c.ID, "echo", "hello").CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("hello")) {
			t.Errorf("crictl exec over %s: %v: %s", transport, err, out)
		}
	}
	anonymous := executorFor(t, "spdy", execURL(t, n, request), rest.TLSClientConfig{})
	if err := anonymous.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &buffer{}}); err == nil {
		t.Error("who does not trust the certificate has a session")
	}
	// berth finds the certificate by the daemon's configuration.
	cmd := exec.CommandContext(ctx, n.Program("berth"), "--config", filepath.Join(n.Dir(), "config.toml"), "exec", c.ID, "echo", "hello")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "hello\n" {
		t.Errorf("berth exec: %v: %s", err, out)
	}
}

// executorFor speaks one of the protocols to a session's URL.
func executorFor(t *testing.T, protocol, address string, trust rest.TLSClientConfig) remotecommand.Executor {
	t.Helper()
	cfg := &rest.Config{TLSClientConfig: trust}
	var executor remotecommand.Executor
	target, err := url.Parse(address)
	if err == nil && protocol == "websocket" {
		executor, err = remotecommand.NewWebSocketExecutor(cfg, http.MethodGet, address)
	} else if err == nil {
		executor, err = remotecommand.NewSPDYExecutor(cfg, http.MethodPost, target)
	}
	if err != nil {
		t.Fatal(err)
	}
	return executor
}

// TestIdleStream: a session on which nothing moves ends after its time and says so; its command is killed.
func TestIdleStream(t *testing.T) {
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) { c.Stream.IdleTimeout = "1s" }})
	c := n.RunPod().Start([]string{"sleep", "1000"})
	for _, protocol := range []string{"spdy", "websocket"} {
		executor := executorFor(t, protocol, execURL(t, n, &runtimeapi.ExecRequest{
			ContainerId: c.ID, Stdout: true, Cmd: []string{"sleep", "4321"},
		}), rest.TLSClientConfig{})
		err := executor.StreamWithContext(n.Context(), remotecommand.StreamOptions{Stdout: &buffer{}})
		if err := mentions(err, "idle for too long"); err != nil {
			t.Errorf("over %s the session ends otherwise: %v", protocol, err)
		}
	}
	n.Eventually("the commands are gone", func() error {
		if ps := c.Output("ps", "-o", "args"); strings.Contains(ps, "sleep 4321") {
			return errors.New(ps)
		}
		return nil
	})
}
