package stream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// resetUnread answers and closes without reading a large request, so that the
// kernel sends a reset.
func resetUnread(conn *net.TCPConn) {
	_, _ = io.ReadFull(conn, make([]byte, 4))
	_, _ = io.WriteString(conn, "answer")
}

// resetAtOnce sends a reset instead of an answer.
func resetAtOnce(conn *net.TCPConn) { _ = conn.SetLinger(0) }

// A connection that is refused, or reset by the pod, ends alone: the others of the
// session go on, and more are served, over SPDY and through a tunnel.
func TestPortForwardSurvivesFailedConnections(t *testing.T) {
	privilege.Root(t)
	for _, protocol := range []string{"spdy", "tunnel"} {
		t.Run(protocol, func(t *testing.T) {
			leakcheck.Check(t)
			netns := podNet(t)
			ports := map[string]int{
				"open": listenIn(t, netns, "127.0.0.1:0", echoAfterEOF), "unread": listenIn(t, netns, "127.0.0.1:0", resetUnread),
				"reset": listenIn(t, netns, "127.0.0.1:0", resetAtOnce), "closed": 9,
			}
			s := serve(t, &program{netns: func(string) (string, error) { return netns, nil }})
			sessionURL, err := s.PortForward("pod1", nil)
			if err != nil {
				t.Fatal(err)
			}
			local, stop := forwardPorts(t, dialerFor(t, protocol, sessionURL), ports)
			var open, failing sync.WaitGroup
			begun, failed := make(chan struct{}), make(chan struct{})
			open.Go(func() { askAround(t, local["open"], begun, failed) })
			await(t, begun, "a connection")
			for range 3 {
				failing.Go(func() { sendMuch(t, local["closed"]) })
				failing.Go(func() { sendMuch(t, local["reset"]) })
				failing.Go(func() {
					if got := sendMuch(t, local["unread"]); got != "answer" {
						t.Errorf("the answer before the reset is %q", got)
					}
				})
			}
			failing.Wait()
			close(failed)
			open.Wait()
			if got := ask(t, local["open"], "again"); got != "AGAIN" {
				t.Errorf("answer = %q, want AGAIN", got)
			}
			if err := stop(); err != nil {
				t.Errorf("port-forward: %v", err)
			}
		})
	}
}

// TestPortForwardStalledConnection: a connection whose pod does not read holds the others of its session up for the forward
// timeout at most, and then ends alone.
func TestPortForwardStalledConnection(t *testing.T) {
	privilege.Root(t)
	for _, protocol := range []string{"spdy", "tunnel"} {
		t.Run(protocol, func(t *testing.T) {
			leakcheck.Check(t)
			netns := podNet(t)
			over := make(chan struct{})
			ports := map[string]int{
				"open":    listenIn(t, netns, "127.0.0.1:0", echoAfterEOF),
				"stalled": listenIn(t, netns, "127.0.0.1:0", func(*net.TCPConn) { <-over }),
			}
			t.Cleanup(func() { close(over) })
			s := serveWith(t, Options{Runtime: &program{netns: func(string) (string, error) { return netns, nil }}, ForwardTimeout: 300 * time.Millisecond})
			sessionURL, err := s.PortForward("pod1", nil)
			if err != nil {
				t.Fatal(err)
			}
			local, stop := forwardPorts(t, dialerFor(t, protocol, sessionURL), ports)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				endless(t, local["stalled"])
			}()
			for range 20 {
				answer := make(chan string, 1)
				go func() { answer <- ask(t, local["open"], "again") }()
				if got := await(t, answer, "an answer beside the stalled connection"); got != "AGAIN" {
					t.Errorf("answer = %q, want AGAIN", got)
				}
			}
			await(t, ended, "the end of the stalled connection")
			if got := ask(t, local["open"], "after"); got != "AFTER" {
				t.Errorf("answer = %q, want AFTER", got)
			}
			if err := stop(); err != nil {
				t.Errorf("port-forward: %v", err)
			}
		})
	}
}

// endless sends until the connection ends.
func endless(t *testing.T, address string) {
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	for data := make([]byte, 1<<20); err == nil; {
		_, err = conn.Write(data)
	}
}

// askAround sends the two halves of a question before and after failed is closed.
func askAround(t *testing.T, address string, begun chan<- struct{}, failed <-chan struct{}) {
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "before ")
	close(begun)
	<-failed
	_, err2 := io.WriteString(conn, "after")
	err3 := conn.(*net.TCPConn).CloseWrite()
	answer, err4 := io.ReadAll(conn)
	if err := errors.Join(err, err2, err3, err4); err != nil || string(answer) != "BEFORE AFTER" {
		t.Errorf("answer = %q, %v", answer, err)
	}
}

// sendMuch sends more than the kernel's buffers hold and returns what is answered.
// The connection may be reset at any time.
func sendMuch(t *testing.T, address string) string {
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Error(err)
		return ""
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = conn.Write(bytes.Repeat([]byte("x"), 4<<20))
	}()
	answer := make([]byte, 6)
	n, _ := io.ReadFull(conn, answer)
	_ = conn.Close()
	<-sent
	return string(answer[:n])
}

// dialerFor dials a session's URL as kubectl does, over either protocol.
func dialerFor(t *testing.T, protocol, sessionURL string) httpstream.Dialer {
	t.Helper()
	u, err := url.Parse(sessionURL)
	if err != nil {
		t.Fatal(err)
	}
	if protocol == "tunnel" {
		dialer, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return dialer
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, "POST", u)
}
