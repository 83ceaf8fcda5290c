package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// local runs what is asked for as processes of this machine. With a terminal
// it echoes sizes instead, which is all that this side can see of one. The
// command "hang" writes a line and waits for release.
type local struct{ release chan struct{} }

func (l local) Exec(ctx context.Context, _ string, cmd []string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	if tty {
		return echoSizes(in, out, resize)
	}
	if cmd[0] == "hang" {
		_, err := io.WriteString(out, "start\n")
		<-l.release
		return err
	}
	c := exec.CommandContext(ctx, cmd[0], cmd[1:]...)
	c.Stdout, c.Stderr = out, stderr
	if in != nil {
		pipe, err := c.StdinPipe()
		if err != nil {
			return err
		}
		// A process that ends does not wait for input: the session's end frees this.
		go func() {
			_, _ = io.Copy(pipe, in)
			_ = pipe.Close()
		}()
	}
	err := c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return utilexec.CodeExitError{Err: err, Code: exit.ExitCode()}
	}
	return err
}

func echoSizes(in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, in)
		ended <- err
	}()
	for {
		select {
		case err := <-ended:
			return err
		case size := <-resize:
			if _, err := fmt.Fprintf(out, "%dx%d\n", size.Width, size.Height); err != nil {
				return err
			}
		}
	}
}

func (l local) Attach(ctx context.Context, id string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return l.Exec(ctx, id, []string{"cat"}, in, out, stderr, tty, resize)
}

func (local) PortForward(context.Context, string, int32, io.ReadWriteCloser) error {
	return errors.New("not part of these tests")
}

// server is the stream server of the Kubernetes project, as every CRI runtime
// embeds it.
type server struct {
	streaming.Server

	base       string
	refuseSPDY bool
	located    int
	mu         sync.Mutex
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.refuseSPDY && strings.HasPrefix(strings.ToLower(r.Header.Get("Upgrade")), "spdy") {
		http.Error(w, "no SPDY here", http.StatusForbidden)
		return
	}
	s.Server.ServeHTTP(w, r)
}

func newServer(t *testing.T, refuseSPDY bool) *server {
	t.Helper()
	s := &server{refuseSPDY: refuseSPDY}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	config := streaming.DefaultConfig
	base, err := url.Parse(web.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.BaseURL = base
	s.base = web.URL
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	s.Server, err = streaming.NewServer(config, local{release: release})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *server) exec(st Streams, cmd ...string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		s.mu.Lock()
		s.located++
		s.mu.Unlock()
		resp, err := s.GetExec(&runtimeapi.ExecRequest{
			ContainerId: "c", Cmd: cmd, Tty: st.TTY,
			Stdin: st.Stdin != nil, Stdout: st.Stdout != nil, Stderr: st.Stderr != nil && !st.TTY,
		})
		if err != nil {
			return "", err
		}
		return resp.Url, nil
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// both runs a test over SPDY and over the fallback.
func both(t *testing.T, test func(t *testing.T, s *server)) {
	t.Helper()
	t.Run("spdy", func(t *testing.T) { test(t, newServer(t, false)) })
	t.Run("websocket", func(t *testing.T) { test(t, newServer(t, true)) })
}

func TestOutputAndExitCode(t *testing.T) {
	both(t, func(t *testing.T, s *server) {
		var out, errOut bytes.Buffer
		st := Streams{Stdout: &out, Stderr: &errOut}
		err := Run(testContext(t), s.exec(st, "sh", "-c", "echo out; echo err >&2; exit 42"), st)
		var exit *ExitError
		if !errors.As(err, &exit) || exit.Code != 42 {
			t.Errorf("error %v, want exit code 42", err)
		}
		if out.String() != "out\n" || errOut.String() != "err\n" {
			t.Errorf("stdout %q, stderr %q; want out and err", out.String(), errOut.String())
		}
	})
}

func TestLargeOutputIsComplete(t *testing.T) {
	both(t, func(t *testing.T, s *server) {
		const size = 8 << 20
		var out bytes.Buffer
		st := Streams{Stdout: &out}
		if err := Run(testContext(t), s.exec(st, "head", "-c", fmt.Sprint(size), "/dev/zero"), st); err != nil {
			t.Fatal(err)
		}
		if out.Len() != size {
			t.Errorf("%d bytes arrived, want %d", out.Len(), size)
		}
	})
}

// The end of our input reaches the process, which can then still answer.
func TestStdinHalfClose(t *testing.T) {
	s := newServer(t, false)
	var out bytes.Buffer
	st := Streams{Stdin: io.NopCloser(strings.NewReader("hello")), Stdout: &out}
	if err := Run(testContext(t), s.exec(st, "wc", "-c"), st); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(out.String()); got != "5" {
		t.Errorf("wc counted %q, want 5", got)
	}
	if s.located != 1 {
		t.Errorf("asked for a URL %d times, want once", s.located)
	}
}

// A process that ends does not wait for input that never comes.
func TestStdinLeftOpen(t *testing.T) {
	both(t, func(t *testing.T, s *server) {
		r, w := io.Pipe()
		defer w.Close()
		st := Streams{Stdin: r, Stdout: io.Discard}
		if err := Run(testContext(t), s.exec(st, "true"), st); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTerminalSizes(t *testing.T) {
	both(t, func(t *testing.T, s *server) {
		r, w := io.Pipe()
		outR, outW := io.Pipe()
		sizes := make(chan Size, 2)
		sizes <- Size{Width: 80, Height: 24}
		sizes <- Size{Width: 132, Height: 50}
		st := Streams{Stdin: r, Stdout: outW, TTY: true, Resize: sizes}
		done := make(chan error, 1)
		go func() { done <- Run(testContext(t), s.exec(st, "size"), st) }()
		buf := make([]byte, len("80x24\n132x50\n"))
		if _, err := io.ReadFull(outR, buf); err != nil {
			t.Fatal(err)
		}
		if string(buf) != "80x24\n132x50\n" {
			t.Errorf("sizes arrived as %q", buf)
		}
		if err := w.CloseWithError(ErrDetached); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, ErrDetached) {
			t.Errorf("error %v, want ErrDetached", err)
		}
	})
}

func TestCancel(t *testing.T) {
	both(t, func(t *testing.T, s *server) {
		ctx, cancel := context.WithCancel(testContext(t))
		r, w := io.Pipe()
		defer w.Close()
		st := Streams{Stdin: r, Stdout: io.Discard, Connected: cancel}
		if err := Run(ctx, s.exec(st, "cat"), st); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestOutputThatCannotBeWritten(t *testing.T) {
	s := newServer(t, false)
	st := Streams{Stdout: brokenWriter{}}
	err := Run(testContext(t), s.exec(st, "head", "-c", "1000000", "/dev/zero"), st)
	if err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("error %v, want the one of the writer", err)
	}
}

// A server that dies in the middle must not look like a success.
func TestLostConnection(t *testing.T) {
	s := newServer(t, false)
	target := strings.TrimPrefix(s.base, "http://")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	cut := make(chan struct{})
	var relay sync.WaitGroup
	relay.Go(func() {
		client, err := listener.Accept()
		if err != nil {
			return // the test has ended
		}
		upstream, err := net.Dial("tcp", target)
		if err != nil {
			t.Error(err)
			return
		}
		relay.Go(func() { _, _ = io.Copy(upstream, client) }) // ends by being cut
		relay.Go(func() { _, _ = io.Copy(client, upstream) }) // so does this
		<-cut
		client.Close()
		upstream.Close()
	})
	st := Streams{Stdout: writerFunc(func(p []byte) (int, error) {
		close(cut)
		return len(p), nil
	})}
	locate := func(ctx context.Context) (string, error) {
		text, err := s.exec(st, "hang")(ctx)
		return strings.Replace(text, target, listener.Addr().String(), 1), err
	}
	if err := Run(testContext(t), locate, st); !errors.Is(err, ErrLost) {
		t.Errorf("error %v, want ErrLost", err)
	}
	relay.Wait()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestRefusals(t *testing.T) {
	s := newServer(t, false)
	for _, tc := range []struct{ name, url, want string }{
		{"unused_token", s.mustURL(t) + "x", "404"},
		{"nobody_listens", "http://127.0.0.1:1/exec/x", "connect to the streaming server"},
		{"no_host", "http:///exec/x", "want an http URL with a host"},
		{"no_url", "::", "parse streaming URL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			locate := func(context.Context) (string, error) { return tc.url, nil }
			err := Run(testContext(t), locate, Streams{Stdout: io.Discard})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want in it %q", err, tc.want)
			}
		})
	}
}

func (s *server) mustURL(t *testing.T) string {
	t.Helper()
	u, err := s.exec(Streams{Stdout: io.Discard}, "true")(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestParseStatus(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`{"status":"Success"}`, ""},
		{`{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}`, "exit code 7"},
		{`{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"x"}]}}`, `the streaming server sent the exit code "x"`},
		{`{"status":"Failure","message":"no such container"}`, "no such container"},
		{`{"status":"Failure"}`, `the streaming server ended the session with "{\"status\":\"Failure\"}"`},
		{`plain words`, `the streaming server ended the session with "plain words"`},
	} {
		got := ""
		if err := parseStatus([]byte(tc.in)); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("parseStatus(%s) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

// No session leaves a goroutine behind, however it ends.
func TestNoGoroutineLeft(t *testing.T) {
	s := newServer(t, false)
	st := Streams{Stdin: io.NopCloser(strings.NewReader("x")), Stdout: io.Discard, Stderr: io.Discard}
	if err := Run(testContext(t), s.exec(st, "cat"), st); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		buf := make([]byte, 1<<20)
		stacks := string(buf[:runtime.Stack(buf, true)])
		if !strings.Contains(stacks, "session.carry") && !strings.Contains(stacks, "session.receive") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("goroutines of a session are left:\n%s", stacks)
		}
		runtime.Gosched()
	}
}
