package wire

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// serve accepts one connection and returns it with a client of it.
func serve(t *testing.T) (client *FDConn, server *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = DialFD(path, Protocol); err != nil {
		t.Fatal(err)
	}
	if server, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close() // a test may have closed it
		_ = server.Close()
	})
	return client, server
}

// TestLateAnswerIsNotTaken: an answer that comes after its time is not that to the next request.
func TestLateAnswerIsNotTaken(t *testing.T) {
	client, conn := serve(t)
	client.timeout = 50 * time.Millisecond
	given, answered := make(chan struct{}), make(chan error, 1)
	go func() {
		server := NewFDConn(conn)
		answered <- server.Answer(func(_, name string, _ Files) (Files, func(), error) {
			<-given
			file, err := os.Open(os.DevNull)
			return Files{name: file}, func() { _ = file.Close() }, err
		})
	}()
	if _, err := client.Get("first"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the request that was not answered in time: got %v", err)
	}
	close(given)
	if err := <-answered; err == nil {
		t.Error("the late answer was sent on a connection that is in doubt")
	}
	if files, err := client.Get("second"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the next request: got %v %v", files, err)
	}
}

// TestAnswerToAnotherRequest closes the connection.
func TestAnswerToAnotherRequest(t *testing.T) {
	client, conn := serve(t)
	go func() {
		for {
			if _, err := conn.Read(make([]byte, maxFDMessage)); err != nil {
				return
			}
			if _, err := conn.Write([]byte("1 ok\n")); err != nil {
				return
			}
		}
	}()
	if err := client.Put("first", nil); err != nil {
		t.Errorf("the first request: %v", err)
	}
	for range 2 {
		if err := client.Put("second", nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the answer to another request: got %v", err)
		}
	}
}

// TestRefusalKeepsTheConnection: also that of a message whose descriptors did not arrive.
func TestRefusalKeepsTheConnection(t *testing.T) {
	client, conn := serve(t)
	go func() {
		server := NewFDConn(conn)
		for server.Answer(func(op, name string, files Files) (Files, func(), error) {
			files.Close()
			if n, err := strconv.Atoi(name); err == nil { // more than can be sent
				many := Files{}
				for i := range n {
					many[strconv.Itoa(i)] = os.Stdin
				}
				return many, nil, nil
			}
			return nil, nil, errors.Join(errors.New(op+" "+strings.Repeat("x", 2*maxFDMessage)), errdefs.ErrResourceExhausted)
		}) == nil {
		}
	}()
	if err := client.Put("a", nil); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "put xxx") {
		t.Errorf("got %v", err)
	}
	if _, err := client.Get(strconv.Itoa(maxFDs + 1)); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("an answer that cannot be sent: got %v", err)
	}
	if _, err := client.conn.Write([]byte("9 put torn\nstdin")); err != nil { // its descriptor is missing
		t.Fatal(err)
	}
	if m, err := client.receive(); err != nil || !strings.HasPrefix(m.text, "9 error ") {
		t.Errorf("a damaged request: got %+v %v", m, err)
	}
	if err := client.Put(strings.Repeat("y", maxFDText), nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a name that is too long: got %v", err)
	}
	if files, err := client.Get("3"); err != nil || len(files) != 3 {
		t.Errorf("after refusals: got %v %v", files, err)
	} else {
		files.Close()
	}
}
