package stream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lingerTime is how long a closed connection waits for the client to close its
// side once the client's kernel has all the output. Closing at once with unread
// input in the kernel's buffer would make it send a reset, and the client would
// lose the end of the output.
const lingerTime = time.Second

// bufferSize holds a whole message of a WebSocket, which otherwise takes several
// writes, or one of what a client sends.
const bufferSize = 33 << 10

// errClientGone is why a session ends whose client closed the connection.
var errClientGone = errors.New("the client closed the connection")

// clientConn is the hijacked connection of a session. The protocol libraries
// read from it all the time, so it is the place that notices a client which
// went away: the first read or write that fails ends the session.
type clientConn struct {
	net.Conn
	// gone ends the session.
	gone context.CancelCauseFunc
	// stall is how long the client may take none of the output that is left when
	// the connection is closed.
	stall time.Duration

	once sync.Once
	// closed is closed when the descriptor is.
	closed chan struct{}
	// closing is closed when the linger begins.
	closing chan struct{}
	// finish closes the descriptor at once.
	finish func()
}

func newClientConn(c net.Conn, stall time.Duration, gone context.CancelCauseFunc) *clientConn {
	conn := &clientConn{Conn: c, stall: stall, gone: gone, closed: make(chan struct{}), closing: make(chan struct{})}
	conn.finish = sync.OnceFunc(func() {
		// The peer is gone or had its time; no error can reach it.
		_ = c.Close()
		close(conn.closed)
	})
	return conn
}

// Read reads what the client sends; its end or a failure ends the session.
func (c *clientConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.failed(err)
	}
	return n, err
}

// Write sends to the client; a failure ends the session.
func (c *clientConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		c.failed(err)
	}
	return n, err
}

// failed ends the session and, once it is closing, the connection.
func (c *clientConn) failed(err error) {
	if c.isClosing() {
		c.finish()
		return
	}
	// What comes after its close, the kernel of the client answers with a reset.
	for _, end := range []error{io.EOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			c.gone(errClientGone)
			return
		}
	}
	c.gone(fmt.Errorf("the connection to the client broke: %w", err))
}

// isClosing says whether Close was called.
func (c *clientConn) isClosing() bool {
	select {
	case <-c.closing:
		return true
	default:
		return false
	}
}

// Close ends the session, sends the end of the output and gives the client the
// time to take it. It does not wait; closed tells. The error is always nil.
//
// The SPDY library calls it in the middle of a session too: when the client
// says GOAWAY it stops reading, so that the end of the input is never read.
func (c *clientConn) Close() error {
	c.once.Do(func() {
		c.gone(errClientGone)
		close(c.closing)
		go c.drain()
	})
	return nil
}

// drain says that no more comes and throws away what the client still sends
// until it closes its side or the linger is over. The input is not needed any
// more, so other readers of the connection lose nothing.
func (c *clientConn) drain() {
	defer c.finish()
	// Timers and no deadlines: the libraries set deadlines of their own.
	ended := make(chan struct{})
	defer close(ended)
	go c.linger(ended)
	// With TLS the end is something to send, which may wait for a write in flight.
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	// Any outcome means the same: the client has no more to say.
	_, _ = io.Copy(io.Discard, c.Conn)
}

// linger closes the descriptor when the client's kernel has had all the output
// for lingerTime, or the client has taken nothing of it for the stall time. A
// client that reads slowly gets all of it. The kernel does not notify of what the
// peer acknowledges, so the queue is looked at.
func (c *clientConn) linger(ended <-chan struct{}) {
	defer c.finish()
	look := time.NewTicker(lingerTime)
	defer look.Stop()
	last, moved := c.unsent(), time.Now()
	for {
		select {
		case <-ended:
			return
		case <-look.C:
		}
		left := c.unsent()
		if left == 0 && last == 0 || time.Since(moved) > c.stall {
			return
		}
		if left != last {
			last, moved = left, time.Now()
		}
	}
}

// unsent is how many bytes the client's kernel has not acknowledged yet.
func (c *clientConn) unsent() int {
	raw := c.Conn
	if encrypted, ok := raw.(interface{ NetConn() net.Conn }); ok {
		raw = encrypted.NetConn()
	}
	socket, ok := raw.(syscall.Conn)
	if !ok {
		return 0
	}
	control, err := socket.SyscallConn()
	if err != nil {
		return 0
	}
	queued := 0
	// Both fail only for a socket that is closed: nothing is left then.
	_ = control.Control(func(fd uintptr) {
		queued, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	})
	if err != nil {
		return 0
	}
	return queued
}

// hijacker is a response that puts a [clientConn] around the connection when a
// protocol library takes it over.
type hijacker struct {
	http.ResponseWriter
	adopt func(net.Conn) *clientConn
}

// Hijack implements [http.Hijacker].
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	raw, buffered, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("take over the connection: %w", err)
	}
	conn := h.adopt(raw)
	// What the HTTP server has read ahead comes first; the rest must come
	// through conn, or its end would not be noticed.
	ahead, err := buffered.Peek(buffered.Reader.Buffered())
	if err != nil {
		return nil, nil, fmt.Errorf("take over the connection: %w", err)
	}
	input := io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), conn)
	return conn, bufio.NewReadWriter(bufio.NewReaderSize(input, bufferSize), bufio.NewWriterSize(conn, bufferSize)), nil
}
