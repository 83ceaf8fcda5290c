package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// streamDeadline bounds one session.
const streamDeadline = time.Minute

// buffer collects a stream while it is written.
type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

// contains waits until a stream has said something.
func (b *buffer) contains(n *harness.Node, words string) {
	n.Eventually(fmt.Sprintf("the stream says %q", words), func() error {
		if got := b.String(); !strings.Contains(got, words) {
			return fmt.Errorf("it says %q", got)
		}
		return nil
	})
}

// sizes are the sizes that a terminal takes, one after the other.
type sizes chan remotecommand.TerminalSize

// Next waits for a new size.
func (s sizes) Next() *remotecommand.TerminalSize {
	size, open := <-s
	if !open {
		return nil
	}
	return &size
}

// session speaks the protocol that kubelet's clients speak.
func session(t *testing.T, address string, options remotecommand.StreamOptions) error {
	t.Helper()
	return sessionOver(t, "spdy", address, options)
}

// sessionOver speaks it over SPDY or the fifth version of the WebSocket protocol.
func sessionOver(t *testing.T, protocol, address string, options remotecommand.StreamOptions) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), streamDeadline)
	defer cancel()
	return executorFor(t, protocol, address, rest.TLSClientConfig{}).StreamWithContext(ctx, options)
}

func execURL(t *testing.T, n *harness.Node, request *runtimeapi.ExecRequest) string {
	t.Helper()
	answer, err := n.Runtime.Exec(n.Context(), request)
	if err != nil {
		t.Fatalf("ask for exec: %v", err)
	}
	return answer.GetUrl()
}

// TestExecStream: the streams come apart and whole, standard input reaches the command, and so does its end.
func TestExecStream(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"sleep", "1000"})
		for _, protocol := range []string{"spdy", "websocket"} {
			var stdout, stderr buffer
			address := execURL(t, n, &runtimeapi.ExecRequest{
				ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: true,
				Cmd: []string{"sh", "-c", "cat; echo err >&2; exit 12"},
			})
			big := strings.Repeat("0123456789abcdef", 1<<16)
			err := sessionOver(t, protocol, address, remotecommand.StreamOptions{Stdin: strings.NewReader(big), Stdout: &stdout, Stderr: &stderr})
			var exit utilexec.CodeExitError
			if !errors.As(err, &exit) || exit.Code != 12 {
				t.Errorf("over %s the session ends with %v, want exit code 12", protocol, err)
			}
			if stdout.String() != big {
				t.Errorf("over %s stdout has %d bytes, want the %d that were sent", protocol, len(stdout.String()), len(big))
			}
			equal(t, "stderr over "+protocol, stderr.String(), "err\n")
			// The URL is good for one session.
			if err := sessionOver(t, protocol, address, remotecommand.StreamOptions{Stdout: &stdout}); err == nil {
				t.Errorf("over %s the URL gives a second session", protocol)
			}
		}
	})
}

// TestExecTerminal: a terminal has the size that it is given, and a new one; a command that ends ends the session, though its
// standard input is still open.
func TestExecTerminal(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"sleep", "1000"})
		address := execURL(t, n, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"sh"}, Tty: true, Stdin: true, Stdout: true})
		in, keys := io.Pipe()
		var screen buffer
		size := make(sizes, 2)
		ended := make(chan error, 1)
		go func() {
			ended <- session(t, address, remotecommand.StreamOptions{Stdin: in, Stdout: &screen, Tty: true, TerminalSizeQueue: size})
		}()
		typed := func(line string) {
			if _, err := io.WriteString(keys, line+"\n"); err != nil {
				t.Fatal(err)
			}
		}
		size <- remotecommand.TerminalSize{Width: 91, Height: 37}
		typed("until [ \"$(stty size)\" = '37 91' ]; do sleep 0.01; done; echo first $((1+1))")
		screen.contains(n, "first 2")
		size <- remotecommand.TerminalSize{Width: 132, Height: 50}
		typed("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.01; done; echo second $((2+1))")
		screen.contains(n, "second 3")
		typed("exit 3")
		err := <-ended
		close(size)
		var exit utilexec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 3 {
			t.Errorf("session ends with %v, want exit code 3", err)
		}
		if err := keys.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestAttach: what is written to the standard input of a container arrives, what it says comes back and is in the log too,
// and with stdin_once it gets the end of the input. So it is with a user namespace, too.
func TestAttach(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		attached(t, n, n.RunPod())
		attached(t, n, n.RunPod(userNamespace))
	})
}

// attached has sessions with new containers of a pod, over each protocol.
func attached(t *testing.T, n *harness.Node, p *harness.Pod) {
	t.Helper()
	for _, protocol := range []string{"spdy", "websocket"} {
		c := p.Start([]string{"sh"}, likePod(p), func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
		answer, err := n.Runtime.Attach(n.Context(), &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		var stdout, stderr buffer
		if err := sessionOver(t, protocol, answer.GetUrl(), remotecommand.StreamOptions{
			Stdin: strings.NewReader("echo hello\n"), Stdout: &stdout, Stderr: &stderr,
		}); err != nil {
			t.Errorf("over %s the session ends with %v", protocol, err)
		}
		equal(t, "stdout", stdout.String(), "hello\n")
		equal(t, "exit code", c.Exited().GetExitCode(), 0)
		n.Eventually("the log has it too", func() error { return logHas(c, "stdout F hello") })
	}
}

// TestAttachInputOnly: a session that takes only input delivers all of it, and ends with it.
func TestAttachInputOnly(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	c := n.RunPod().Start([]string{"sh"}, func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	answer, err := n.Runtime.Attach(n.Context(), &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := session(t, answer.GetUrl(), remotecommand.StreamOptions{Stdin: strings.NewReader("echo all of it\nexit 3\n")}); err != nil {
		t.Errorf("session ends with %v", err)
	}
	equal(t, "exit code", c.Exited().GetExitCode(), 3)
	n.Eventually("the log has it", func() error { return logHas(c, "stdout F all of it") })
}

// TestPortForward: a connection reaches a port of the pod, in its own network and in the host's, on either loopback address.
func TestPortForward(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	host := freePort(t)
	for _, c := range []struct {
		name     string
		mode     runtimeapi.NamespaceMode
		loopback string
		port     int32
	}{
		{"pod", runtimeapi.NamespaceMode_POD, "127.0.0.1", 8080}, {"pod6", runtimeapi.NamespaceMode_POD, "[::1]", 8080},
		{"host", runtimeapi.NamespaceMode_NODE, "127.0.0.1", host}, {"host6", runtimeapi.NamespaceMode_NODE, "[::1]", freePort(t)},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := n.RunPod(func(config *runtimeapi.PodSandboxConfig) {
				config.Linux.SecurityContext.NamespaceOptions.Network = c.mode
			})
			serve := fmt.Sprintf("mkdir /tmp/w && echo page >/tmp/w/index.html && exec httpd -f -p %s:%d -h /tmp/w", c.loopback, c.port)
			server := p.Start([]string{"sh", "-c", serve}, func(config *runtimeapi.ContainerConfig) {
				config.Linux.SecurityContext.NamespaceOptions.Network = c.mode
			})
			// The client ends the whole forwarding with the first connection that is refused.
			n.Eventually("the port is open", func() error {
				if code := server.Exec("wget", "-q", "-O", "-", fmt.Sprintf("http://%s:%d/", c.loopback, c.port)).GetExitCode(); code != 0 {
					return fmt.Errorf("wget ends with %d", code)
				}
				return nil
			})
			answer, err := n.Runtime.PortForward(n.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{c.port}})
			if err != nil {
				t.Fatal(err)
			}
			local, stop := forward(t, answer.GetUrl(), c.port)
			equal(t, "the page", fetch(n, t, fmt.Sprintf("127.0.0.1:%d", local)), "page")
			stop()
		})
	}
}

// forward listens on a port of the host and sends what comes to a port of the pod.
func forward(t *testing.T, address string, port int32) (local uint16, stop func()) {
	t.Helper()
	target, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	end, ready := make(chan struct{}), make(chan struct{})
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, end, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("forward a port: %v", err)
	}
	ports, err := f.GetPorts()
	if err != nil || len(ports) != 1 {
		t.Fatalf("forwarded ports are %v, %v, want one", ports, err)
	}
	return ports[0].Local, func() {
		close(end)
		if err := <-ended; err != nil {
			t.Errorf("forwarding ends with %v", err)
		}
	}
}

// TestBadStreams: what cannot be streamed is refused before there is a URL.
func TestBadStreams(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	c := p.Start([]string{"sleep", "1000"})
	for _, call := range []struct {
		name    string
		request *runtimeapi.ExecRequest
		code    codes.Code
	}{
		{"unknown", &runtimeapi.ExecRequest{ContainerId: "nope", Cmd: []string{"true"}, Stdout: true}, codes.NotFound},
		{"no-stream", &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}}, codes.InvalidArgument},
		{"terminal-with-stderr", &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}, Tty: true, Stdout: true, Stderr: true}, codes.InvalidArgument},
	} {
		t.Run(call.name, func(t *testing.T) {
			_, err := n.Runtime.Exec(n.Context(), call.request)
			wantError(t, err, call.code)
		})
	}
	_, err := n.Runtime.Attach(n.Context(), &runtimeapi.AttachRequest{ContainerId: c.ID, Tty: true, Stdout: true, Stderr: true})
	wantError(t, err, codes.InvalidArgument)
	p.Stop()
	_, err = n.Runtime.Exec(n.Context(), &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}, Stdout: true})
	wantError(t, err, codes.FailedPrecondition)
	_, err = n.Runtime.PortForward(n.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{80}})
	wantError(t, err, codes.FailedPrecondition)
}

// TestStreamsDrain: a daemon that gets SIGTERM tells the sessions why they end, over each protocol, and ends; the container
// goes on, and the next daemon has sessions with it.
func TestStreamsDrain(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	c := n.RunPod().Start([]string{"sh", "-c", "while read line; do echo $line; done"}, func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	var said [2]buffer
	var sessions sync.WaitGroup
	for i, protocol := range []string{"spdy", "websocket"} {
		address := execURL(t, n, &runtimeapi.ExecRequest{ContainerId: c.ID, Stdout: true, Cmd: []string{"sh", "-c", "echo begun; sleep 1000"}})
		sessions.Go(func() {
			err := sessionOver(t, protocol, address, remotecommand.StreamOptions{Stdout: &said[i]})
			if err := mentions(err, "the daemon is shutting down"); err != nil {
				t.Errorf("over %s the session ends otherwise: %v", protocol, err)
			}
		})
	}
	for i := range said {
		said[i].contains(n, "begun")
	}
	if err := n.Restart(n.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	sessions.Wait()
	equal(t, "state of the container", c.Status().GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	equal(t, "a command after the restart", c.Output("echo", "hello"), "hello")
	n.Eventually("the commands of the sessions are gone", func() error {
		if ps := c.Output("ps", "-o", "args"); strings.Contains(ps, "sleep 1000") {
			return errors.New(ps)
		}
		return nil
	})
}
