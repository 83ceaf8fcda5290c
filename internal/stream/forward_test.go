package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// podNet makes a pinned network namespace that lives as long as the test.
func podNet(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(leakcheck.Dir(t), "ns")
	paths, err := namespace.Create(t.Context(), namespace.Request{Dir: dir, Net: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespace.Remove(context.WithoutCancel(t.Context()), dir); err != nil {
			t.Errorf("remove the namespace: %v", err)
		}
	})
	return paths.Net
}

// listenIn listens inside a network namespace, "" for that of the test, and
// serves each connection with handle until the test ends.
func listenIn(t *testing.T, netns, address string, handle func(*net.TCPConn)) (port int) {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = new(net.ListenConfig).Listen(t.Context(), "tcp", address)
		return err
	}
	var err error
	if netns == "" {
		err = listen()
	} else {
		err = namespace.Do(netns, listen)
	}
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer func() { _ = conn.Close() }()
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// echoAfterEOF reads to the end and only then answers, so that the answer
// proves that the end of the input was passed on and the other direction left
// open.
func echoAfterEOF(conn *net.TCPConn) {
	all, _ := io.ReadAll(conn)
	_, _ = conn.Write(bytes.ToUpper(all))
}

// forward is what crictl does with the URL of a port-forward session: it
// listens locally and answers where.
func forward(t *testing.T, sessionURL string, port int) (local string, stop func() error) {
	t.Helper()
	return forwardWith(t, dialerFor(t, "spdy", sessionURL), port)
}

// forwardWith does it over any protocol.
func forwardWith(t *testing.T, dialer httpstream.Dialer, port int) (local string, stop func() error) {
	t.Helper()
	locals, stop := forwardPorts(t, dialer, map[string]int{"": port})
	return locals[""], stop
}

// forwardPorts forwards several ports in one session.
func forwardPorts(t *testing.T, dialer httpstream.Dialer, to map[string]int) (locals map[string]string, stop func() error) {
	t.Helper()
	stopping, ready := make(chan struct{}), make(chan struct{})
	var pairs []string
	for _, port := range to {
		pairs = append(pairs, fmt.Sprintf("0:%d", port))
	}
	pf, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, pairs, stopping, ready, io.Discard, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- pf.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("port-forward ended before it was ready: %v", err)
	}
	ports, err := pf.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceValue(func() error {
		close(stopping)
		return await(t, done, "the end of the port-forward")
	})
	t.Cleanup(func() { _ = stop() })
	locals = map[string]string{}
	for name, port := range to {
		for _, forwarded := range ports {
			if int(forwarded.Remote) == port {
				locals[name] = fmt.Sprintf("127.0.0.1:%d", forwarded.Local)
			}
		}
	}
	return locals, stop
}

// ask sends a question, closes the sending side and reads the answer.
func ask(t *testing.T, address, question string) string {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, question); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// Both loopback addresses of a pod and of the host answer, with half-close, on
// several connections of one session.
func TestPortForwardReachesLoopback(t *testing.T) {
	privilege.Root(t)
	for _, c := range []struct {
		name, address string
		host          bool
	}{
		{"pod_ipv4", "127.0.0.1:0", false},
		{"pod_ipv6", "[::1]:0", false},
		{"host_ipv4", "127.0.0.1:0", true},
		{"host_ipv6", "[::1]:0", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			leakcheck.Check(t)
			netns := ""
			if !c.host {
				netns = podNet(t)
			}
			port := listenIn(t, netns, c.address, echoAfterEOF)
			s := serve(t, &program{netns: func(string) (string, error) { return netns, nil }})
			u, err := s.PortForward("pod1", nil)
			if err != nil {
				t.Fatal(err)
			}
			local, stop := forward(t, u, port)
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
		})
	}
}

// forwardOnce runs one connection of a session without a protocol around it: a
// client's library leaves goroutines behind when it is refused too fast.
func forwardOnce(t *testing.T, p *program, port int32, to io.Writer) error {
	t.Helper()
	sessions := newSessions(testTimeout)
	session, err := sessions.begin(t.Context(), kindPortForward, "pod1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		session.finish()
		sessions.remove(session)
	}()
	client, server := net.Pipe()
	defer func() { _ = client.Close() }()
	f := &forwarder{runtime: p, session: session, log: slog.New(slog.NewTextHandler(to, nil))}
	return f.PortForward(t.Context(), "pod1", "", port, server)
}

// A refused connection is no error of the session. The log has both addresses that
// were tried.
func TestPortForwardToAClosedPort(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	netns := podNet(t)
	var log buffer
	if err := forwardOnce(t, &program{netns: func(string) (string, error) { return netns, nil }}, 9, &log); err != nil {
		t.Errorf("the session ends with %v", err)
	}
	for _, want := range []string{"port-forward connection failed", "127.0.0.1:9", "[::1]:9", "refused"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log %q lacks %q", log.String(), want)
		}
	}
}

// A pod or namespace that is gone, and even a panic, are errors of that
// connection only.
func TestPortForwardToWhatIsGone(t *testing.T) {
	leakcheck.Check(t)
	for name, c := range map[string]struct {
		netns func(string) (string, error)
		want  string
	}{
		"pod":       {func(string) (string, error) { return "", errors.New("sandbox is not ready") }, "sandbox is not ready"},
		"namespace": {func(string) (string, error) { return filepath.Join(t.TempDir(), "net"), nil }, "not found"},
		"panic":     {func(string) (string, error) { panic("a defect") }, "a defect"},
	} {
		if err := forwardOnce(t, &program{netns: c.netns}, 80, t.Output()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// When the pod goes away the session ends, connections in use and all.
func TestPortForwardEndsWithItsPod(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	netns := podNet(t)
	connected := make(chan struct{}, 1)
	port := listenIn(t, netns, "127.0.0.1:0", func(conn *net.TCPConn) {
		// What arrives proves that the client has opened all its streams; one
		// that is interrupted before leaves a goroutine of its library behind.
		if _, err := io.ReadFull(conn, make([]byte, 1)); err == nil {
			connected <- struct{}{}
		}
		_, _ = io.Copy(io.Discard, conn)
	})
	s := serve(t, &program{netns: func(string) (string, error) { return netns, nil }})
	u, err := s.PortForward("pod1", nil)
	if err != nil {
		t.Fatal(err)
	}
	local, _ := forward(t, u, port)
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", local)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	await(t, connected, "the connection to the pod")
	s.End("pod1")
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, conn)
		ended <- err
	}()
	if err := await(t, ended, "the end of the client's connection"); err != nil {
		t.Logf("the client's connection ended with: %v", err)
	}
}
