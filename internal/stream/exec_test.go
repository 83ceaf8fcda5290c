package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/berth-runtime/berth/test/leakcheck"
)

// A command without a terminal gets its input up to EOF; its two outputs stay
// apart and its exit code arrives.
func TestExecCarriesStreamsAndExitCode(t *testing.T) {
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
	err = run(t.Context(), t, u, remotecommand.StreamOptions{Stdin: strings.NewReader("input"), Stdout: &stdout, Stderr: &stderr})
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 42 {
		t.Errorf("error = %v, want exit code 42", err)
	}
	if stdout.String() != "cat - got input" || stderr.String() != "complaint" {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}
}

// Nothing of a long output is lost when the command ends at once and input of
// the client is still unread.
func TestExecDeliversAllOutputDespiteUnreadInput(t *testing.T) {
	leakcheck.Check(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	s := serve(t, &program{exec: func(_ context.Context, _ []string, s Streams) (int, error) {
		_, err := s.Stdout.Write(want)
		return 0, err
	}})
	u, err := s.Exec("c1", []string{"yes"}, Pipes{Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	endless, feeder := io.Pipe()
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		for {
			if _, err := feeder.Write([]byte("more input\n")); err != nil {
				return
			}
		}
	}()
	var stdout bytes.Buffer
	err = run(t.Context(), t, u, remotecommand.StreamOptions{Stdin: endless, Stdout: &stdout})
	if err := endless.Close(); err != nil {
		t.Error(err)
	}
	await(t, fed, "the end of the input")
	if err != nil {
		t.Errorf("exec: %v", err)
	}
	if !bytes.Equal(stdout.Bytes(), want) {
		t.Errorf("got %d bytes of %d", stdout.Len(), len(want))
	}
}

// resizes is a client's terminal that was resized twice.
type resizes struct {
	sizes chan remotecommand.TerminalSize
}

func (r resizes) Next() *remotecommand.TerminalSize {
	size, ok := <-r.sizes
	if !ok {
		return nil
	}
	return &size
}

func TestAttachResizesTheTerminal(t *testing.T) {
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
	err = run(t.Context(), t, u, remotecommand.StreamOptions{
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

// A failure of the runtime reaches the client in words.
func TestExecReportsTheRuntimesError(t *testing.T) {
	leakcheck.Check(t)
	s := serve(t, &program{exec: func(context.Context, []string, Streams) (int, error) {
		return 0, errors.New("no such program: /bin/missing")
	}})
	u, err := s.Exec("c1", []string{"/bin/missing"}, Pipes{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	err = run(t.Context(), t, u, remotecommand.StreamOptions{Stdout: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "no such program: /bin/missing") {
		t.Errorf("error = %v, want the runtime's words", err)
	}
}

// A client that goes away ends its command although the command neither reads
// nor writes.
func TestClientHangUpEndsTheCommand(t *testing.T) {
	leakcheck.Check(t)
	running, ended := make(chan struct{}), make(chan error, 1)
	s := serve(t, &program{exec: func(ctx context.Context, _ []string, _ Streams) (int, error) {
		close(running)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return 0, ctx.Err()
	}})
	u, err := s.Exec("c1", []string{"sleep", "inf"}, Pipes{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, hangUp := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, t, u, remotecommand.StreamOptions{Stdout: io.Discard}) }()
	await(t, running, "the start of the command")
	hangUp()
	if err := await(t, done, "the client's return"); err == nil {
		t.Error("the client that hung up got no error")
	}
	if cause := await(t, ended, "the end of the command"); cause == nil {
		t.Error("the command ended without a cause")
	}
}

// End tells why, and voids unused URLs.
func TestEndOfTheOwnerEndsItsSessions(t *testing.T) {
	leakcheck.Check(t)
	running := make(chan struct{})
	s := serve(t, &program{exec: func(ctx context.Context, _ []string, _ Streams) (int, error) {
		close(running)
		<-ctx.Done()
		return 0, ctx.Err()
	}})
	u, err := s.Exec("c1", []string{"sleep", "inf"}, Pipes{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	unused, err := s.Exec("c1", []string{"true"}, Pipes{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- run(t.Context(), t, u, remotecommand.StreamOptions{Stdout: io.Discard}) }()
	await(t, running, "the start of the command")
	s.End("c1")
	if err := await(t, done, "the end of the session"); err == nil || !strings.Contains(err.Error(), errOwnerGone.Error()) {
		t.Errorf("error = %v, want %v", err, errOwnerGone)
	}
	if code := status(t, unused); code != http.StatusNotFound {
		t.Errorf("an unused URL of a container that is gone answers %d, want 404", code)
	}
}

// A command that is about to end may do so; another one is ended.
func TestShutdownDrains(t *testing.T) {
	leakcheck.Check(t)
	running, finish := make(chan string, 2), make(chan struct{})
	s := serve(t, &program{exec: func(ctx context.Context, cmd []string, s Streams) (int, error) {
		running <- cmd[0]
		if cmd[0] == "short" {
			<-finish
			_, err := fmt.Fprint(s.Stdout, "done")
			return 0, err
		}
		<-ctx.Done()
		return 0, ctx.Err()
	}})
	results := map[string]chan error{"short": make(chan error, 1), "long": make(chan error, 1)}
	var stdout buffer
	for name, result := range results {
		u, err := s.Exec("c1", []string{name}, Pipes{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		go func() { result <- run(t.Context(), t, u, remotecommand.StreamOptions{Stdout: &stdout}) }()
		await(t, running, "the start of a command")
	}
	drained := make(chan error, 1)
	go func() { drained <- s.Shutdown(t.Context()) }()
	close(finish)
	if err := await(t, results["short"], "the end of the short command"); err != nil || stdout.String() != "done" {
		t.Errorf("short command: %v, output %q", err, stdout.String())
	}
	if err := await(t, results["long"], "the end of the long command"); err == nil || !strings.Contains(err.Error(), errShutdown.Error()) {
		t.Errorf("long command: %v, want %v", err, errShutdown)
	}
	if err := await(t, drained, "the end of the shutdown"); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// The older WebSocket protocol that the library knows works through our front.
func TestExecOverWebSocket(t *testing.T) {
	leakcheck.Check(t)
	s := serve(t, &program{exec: func(_ context.Context, _ []string, s Streams) (int, error) {
		if s.Stdin != nil || s.Stderr != nil {
			t.Errorf("streams = %+v, want only stdout", s)
		}
		_, err := fmt.Fprint(s.Stdout, "hello")
		return 0, err
	}})
	u, err := s.Exec("c1", []string{"echo"}, Pipes{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := websocket.Dial("ws"+strings.TrimPrefix(u, "http"), "v4.channel.k8s.io", "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var frames []string
	for {
		var frame []byte
		if err := websocket.Message.Receive(conn, &frame); err != nil {
			break
		}
		frames = append(frames, string(frame))
	}
	all := strings.Join(frames, "|")
	if !strings.Contains(all, "\x01hello") || !strings.Contains(all, "\x03{") || !strings.Contains(all, "Success") {
		t.Errorf("frames = %q, want hello on channel 1 and success on channel 3", all)
	}
}

// status answers what a plain GET of a session's URL gets.
func status(t *testing.T, sessionURL string) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(sessionURL)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}
