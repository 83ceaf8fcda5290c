package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// runWebSocket is what crictl does with the URL of an exec or attach session
// when its flag selects WebSocket: it speaks the fifth version only.
func runWebSocket(ctx context.Context, t *testing.T, sessionURL string, o remotecommand.StreamOptions) error {
	t.Helper()
	client, err := remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", sessionURL)
	if err != nil {
		t.Fatal(err)
	}
	return client.StreamWithContext(ctx, o)
}

// The end of the input is passed on while the outputs go on, and the exit code
// arrives: the fifth version has what the fourth lacks.
func TestWebSocketCarriesStreamsAndExitCode(t *testing.T) {
	leakcheck.Check(t)
	s := serve(t, &program{exec: func(_ context.Context, cmd []string, s Streams) (int, error) {
		input, err := io.ReadAll(s.Stdin)
		if err != nil {
			return 0, err
		}
		_, _ = fmt.Fprintf(s.Stdout, "%s got %s", strings.Join(cmd, " "), input)
		_, _ = fmt.Fprint(s.Stderr, "complaint")
		return 42, nil
	}})
	u, err := s.Exec("c1", []string{"cat", "-"}, Pipes{Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	err = runWebSocket(t.Context(), t, u, remotecommand.StreamOptions{Stdin: strings.NewReader("input"), Stdout: &stdout, Stderr: &stderr})
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 42 {
		t.Errorf("error = %v, want exit code 42", err)
	}
	if stdout.String() != "cat - got input" || stderr.String() != "complaint" {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}
}

func TestWebSocketResizesTheTerminal(t *testing.T) {
	leakcheck.Check(t)
	got := make(chan Size, 2)
	s := serve(t, &program{attach: func(_ context.Context, s Streams) error {
		if !s.Terminal || s.Stderr != nil {
			t.Errorf("streams = %+v, want a terminal without stderr", s)
		}
		got <- <-s.Resize
		got <- <-s.Resize
		return nil
	}})
	u, err := s.Attach("c1", Pipes{Stdin: true, Stdout: true, Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	queue := resizes{make(chan remotecommand.TerminalSize, 2)}
	queue.sizes <- remotecommand.TerminalSize{Width: 80, Height: 24}
	queue.sizes <- remotecommand.TerminalSize{Width: 132, Height: 43}
	stdin, typing := io.Pipe()
	err = runWebSocket(t.Context(), t, u, remotecommand.StreamOptions{
		Stdin: stdin, Stdout: io.Discard, Tty: true, TerminalSizeQueue: queue,
	})
	close(queue.sizes)
	_ = typing.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Size{{80, 24}, {132, 43}} {
		if size := await(t, got, "a resize"); size != want {
			t.Errorf("size = %v, want %v", size, want)
		}
	}
}

// Failures of the runtime arrive in words, for exec and attach alike.
func TestWebSocketReportsTheRuntimesError(t *testing.T) {
	leakcheck.Check(t)
	s := serve(t, &program{
		exec:   func(context.Context, []string, Streams) (int, error) { return 0, errors.New("no such program") },
		attach: func(context.Context, Streams) error { return errors.New("no such container") },
	})
	exec, err := s.Exec("c1", []string{"/bin/missing"}, Pipes{Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	err = runWebSocket(t.Context(), t, exec, remotecommand.StreamOptions{Stderr: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "no such program") {
		t.Errorf("exec: %v, want the runtime's words", err)
	}
	attach, err := s.Attach("c1", Pipes{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	err = runWebSocket(t.Context(), t, attach, remotecommand.StreamOptions{Stdin: strings.NewReader("")})
	if err == nil || !strings.Contains(err.Error(), "no such container") {
		t.Errorf("attach: %v, want the runtime's words", err)
	}
}

// A client that goes away ends its command, and the end of the container ends
// the session with its reason.
func TestWebSocketSessionsEnd(t *testing.T) {
	leakcheck.Check(t)
	running, ended := make(chan struct{}, 2), make(chan error, 2)
	s := serve(t, &program{exec: func(ctx context.Context, _ []string, _ Streams) (int, error) {
		running <- struct{}{}
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return 0, ctx.Err()
	}})
	grant := func() string {
		u, err := s.Exec("c1", []string{"sleep", "inf"}, Pipes{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	// The client's library would leave goroutines behind if it hung up.
	conn, err := websocket.Dial("ws"+strings.TrimPrefix(grant(), "http"), "v5.channel.k8s.io", "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	await(t, running, "the start of the command")
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if cause := await(t, ended, "the end of the command"); !errors.Is(cause, errClientGone) {
		t.Errorf("the command ended because of %v, want %v", cause, errClientGone)
	}
	done := make(chan error, 1)
	u := grant()
	go func() { done <- runWebSocket(t.Context(), t, u, remotecommand.StreamOptions{Stdout: io.Discard}) }()
	await(t, running, "the start of the command")
	s.End("c1")
	if err := await(t, done, "the end of the session"); err == nil || !strings.Contains(err.Error(), errOwnerGone.Error()) {
		t.Errorf("error = %v, want %v", err, errOwnerGone)
	}
}

// Port-forward comes through a WebSocket with several connections at a time
// and half-close, as it does over SPDY.
func TestPortForwardThroughATunnel(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	netns := podNet(t)
	port := listenIn(t, netns, "127.0.0.1:0", echoAfterEOF)
	s := serve(t, &program{netns: func(string) (string, error) { return netns, nil }})
	sessionURL, err := s.PortForward("pod1", nil)
	if err != nil {
		t.Fatal(err)
	}
	local, stop := forwardWith(t, dialerFor(t, "tunnel", sessionURL), port)
	var asking sync.WaitGroup
	for i := range 4 {
		asking.Go(func() {
			if got, want := ask(t, local, fmt.Sprintf("hello %d", i)), fmt.Sprintf("HELLO %d", i); got != want {
				t.Errorf("answer = %q, want %q", got, want)
			}
		})
	}
	asking.Wait()
	if err := stop(); err != nil {
		t.Errorf("port-forward: %v", err)
	}
}
