package integration

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

// protocols are what clients speak.
var protocols = []string{"spdy", "websocket"}

func attachURL(t *testing.T, n *harness.Node, request *runtimeapi.AttachRequest) string {
	t.Helper()
	answer, err := n.Runtime.Attach(n.Context(), request)
	if err != nil {
		t.Fatalf("ask for attach: %v", err)
	}
	return answer.GetUrl()
}

// TestAttachEndsWithInput: without stdin_once and without a terminal, the end of the client's input ends the session after the
// container's answer. The container runs on and takes the next session.
func TestAttachEndsWithInput(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"cat"}, func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
		for _, protocol := range protocols {
			for _, input := range []string{"line\n", "no end of line", "", strings.Repeat("0123456789abcde\n", 1<<14)} {
				var stdout, stderr buffer
				address := attachURL(t, n, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: true})
				err := sessionOver(t, protocol, address, remotecommand.StreamOptions{Stdin: strings.NewReader(input), Stdout: &stdout, Stderr: &stderr})
				if err != nil {
					t.Errorf("over %s with %d bytes of input the session ends with %v", protocol, len(input), err)
				}
				if got := stdout.String(); got != input {
					t.Errorf("over %s stdout has %d bytes, want the %d that were sent", protocol, len(got), len(input))
				}
			}
		}
		equal(t, "state of the container", c.Status().GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	})
}

// TestAttachEndsWithInputUnread: the session ends too if the container does not read its input, or never stops writing.
func TestAttachEndsWithInputUnread(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	for name, command := range map[string]string{"sleeps": "exec sleep 1000", "writes": "while :; do echo x; sleep 0.1; done"} {
		t.Run(name, func(t *testing.T) {
			c := p.Start([]string{"sh", "-c", command}, func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Metadata.Name = true, name })
			address := attachURL(t, n, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true})
			if err := session(t, address, remotecommand.StreamOptions{Stdin: strings.NewReader("line\n"), Stdout: &buffer{}}); err != nil {
				t.Errorf("the session ends with %v", err)
			}
			equal(t, "state of the container", c.Status().GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
		})
	}
}

// slowReader takes bytes at a limited rate.
type slowReader struct {
	buffer
	perSecond int
}

func (s *slowReader) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / time.Duration(s.perSecond))
	return s.buffer.Write(p)
}

// TestExecSlowReader: a client that reads slowly gets all the output of a command that has ended long before.
func TestExecSlowReader(t *testing.T) {
	const rate = 1 << 20
	for name, encrypted := range map[string]bool{"plain": false, "tls": true} {
		t.Run(name, func(t *testing.T) {
			n := harness.Start(t, harness.Options{Configure: func(c *config.Config) { c.Stream.TLS = encrypted }})
			c := n.RunPod().Start([]string{"sleep", "1000"})
			var want strings.Builder
			for i := range 900000 {
				fmt.Fprintln(&want, i)
			}
			var sessions sync.WaitGroup
			for _, protocol := range protocols {
				address := execURL(t, n, &runtimeapi.ExecRequest{ContainerId: c.ID, Stdout: true, Cmd: []string{"seq", "0", "899999"}})
				sessions.Go(func() {
					out := &slowReader{perSecond: rate}
					trust := rest.TLSClientConfig{Insecure: encrypted}
					err := executorFor(t, protocol, address, trust).StreamWithContext(n.Context(), remotecommand.StreamOptions{Stdout: out})
					if err != nil {
						t.Errorf("over %s the session ends with %v", protocol, err)
					}
					if got := out.String(); got != want.String() {
						t.Errorf("over %s there are %d bytes, want %d", protocol, len(got), want.Len())
					}
				})
			}
			sessions.Wait()
		})
	}
}

// gatedReader takes nothing until the gate is closed.
type gatedReader struct {
	gate <-chan struct{}
	got  bytes.Buffer
}

func (g *gatedReader) Write(p []byte) (int, error) {
	<-g.gate
	return g.got.Write(p)
}

// TestAttachSlowReader: a client that reads so slowly that it would hold up the log is dropped with an error. The log has all
// of the output.
func TestAttachSlowReader(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			const script = "read go; head -c 30000000 /dev/zero | tr '\\0' x; echo; echo all of it; %s"
			for end, last := range map[string]string{"runs": "exec sleep 1000", "exits": ""} {
				c := p.Start([]string{"sh", "-c", fmt.Sprintf(script, last)}, func(c *runtimeapi.ContainerConfig) {
					c.Stdin, c.StdinOnce, c.Metadata.Name = true, true, protocol+end
				})
				gate := make(chan struct{})
				ended := make(chan error, 1)
				address := attachURL(t, n, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true})
				go func() {
					ended <- sessionOver(t, protocol, address, remotecommand.StreamOptions{
						Stdin: strings.NewReader("go\n"), Stdout: &gatedReader{gate: gate},
					})
				}()
				n.Eventually("the log has all of it", func() error { return logHas(c, "stdout F all of it") })
				close(gate)
				if err := mentions(<-ended, "output is incomplete"); err != nil {
					t.Errorf("if the container %s the session ends otherwise: %v", end, err)
				}
			}
		})
	}
}

// TestExecTerminalSize: a command finds the size of the client's terminal when it starts.
func TestExecTerminalSize(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"sleep", "1000"})
		for _, protocol := range protocols {
			var screen buffer
			size := make(sizes, 1)
			size <- remotecommand.TerminalSize{Width: 91, Height: 37}
			address := execURL(t, n, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"stty", "size"}, Tty: true, Stdout: true})
			err := sessionOver(t, protocol, address, remotecommand.StreamOptions{Stdout: &screen, Tty: true, TerminalSizeQueue: size})
			close(size)
			if err != nil {
				t.Errorf("over %s the session ends with %v", protocol, err)
			}
			equal(t, "the size over "+protocol, screen.String(), "37 91\r\n")
		}
	})
}

// TestPortForwardRefused: a connection that the pod refuses closes that connection. The session serves the next one.
func TestPortForwardRefused(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	answer, err := n.Runtime.PortForward(n.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{8080}})
	if err != nil {
		t.Fatal(err)
	}
	local, stop := forward(t, answer.GetUrl(), 8080)
	address := fmt.Sprintf("127.0.0.1:%d", local)
	for range 3 {
		if body, err := getPage(n, address); err == nil {
			t.Errorf("a port that is closed answers %q", body)
		}
	}
	p.Start([]string{"sh", "-c", "mkdir /tmp/w && echo page >/tmp/w/index.html && exec httpd -f -p 8080 -h /tmp/w"})
	equal(t, "the page", fetch(n, t, address), "page")
	stop()
}

// TestAttachToWhatTheContainerHas: a session that asks for a terminal or an input which the container was created without, or for
// none where it has one, gets the container's output.
func TestAttachToWhatTheContainerHas(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		for _, terminal := range []bool{false, true} {
			for _, protocol := range protocols {
				c := p.Start([]string{"sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; echo out; exec sleep 1000"}, func(c *runtimeapi.ContainerConfig) { c.Tty = terminal })
				request := &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Tty: !terminal}
				input, closeInput := io.Pipe()
				var stdout buffer
				done := make(chan error, 1)
				address := attachURL(t, n, request)
				go func() {
					done <- sessionOver(t, protocol, address, remotecommand.StreamOptions{Stdin: input, Stdout: &stdout, Tty: !terminal})
				}()
				n.Eventually("the session has the output", func() error {
					if answer := c.Exec("touch", "/go"); answer.GetExitCode() != 0 {
						return fmt.Errorf("touch ended with %d", answer.GetExitCode())
					}
					if got := strings.TrimSpace(stdout.String()); got != "out" {
						return fmt.Errorf("over %s with terminal %t stdout is %q", protocol, terminal, got)
					}
					return nil
				})
				c.Remove()
				if err := <-done; err != nil {
					t.Errorf("over %s with terminal %t the session ends with %v", protocol, terminal, err)
				}
				if err := closeInput.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
