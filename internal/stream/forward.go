package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/berth-runtime/berth/internal/namespace"
)

// dialTimeout bounds one attempt to connect to a port inside a pod. Loopback
// answers at once or not at all.
const dialTimeout = 5 * time.Second

// defaultForwardTimeout is when a connection ends whose pod takes no input, once the kernel's
// buffers of a few MiB are full. SPDY as its clients speak it has no flow control for a stream:
// input that is not read holds up the connections beside it.
const defaultForwardTimeout = 10 * time.Second

// errConnect is why a connection into a pod failed.
var errConnect = errors.New("connect")

// loopbacks are tried in this order, as kubelet's users expect of "localhost".
var loopbacks = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// forwarder connects the streams of one port-forward session to ports.
type forwarder struct {
	runtime Runtime
	session *session
	log     *slog.Logger
	timeout time.Duration // see Options.ForwardTimeout
}

// PortForward implements [portforward.PortForwarder] for one connection: it
// returns when both directions have ended. Clients end the whole session for an
// error, so a connection that the pod refuses or resets is none: the client's
// connection is closed, and the log has the reason. The library calls it in
// goroutines of its own and with a context that never ends, so the session's
// context rules and a panic stops here.
//
//nolint:contextcheck // For that reason.
func (f *forwarder) PortForward(_ context.Context, sandbox, _ string, port int32, stream io.ReadWriteCloser) (err error) {
	if !f.session.enter() {
		return context.Cause(f.session.ctx)
	}
	defer f.session.work.Done()
	defer func() {
		if p := recover(); p != nil {
			f.log.Error("panic in a port-forward", "sandbox", sandbox, "port", port, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	netns, err := f.runtime.NetNS(sandbox)
	if err != nil {
		return err
	}
	conn, err := dial(f.session.ctx, netns, uint16(port)) //nolint:gosec // The library accepts ports of 16 bits only.
	if err == nil {
		err = f.join(stream, conn)
	} else if !errors.Is(err, errConnect) {
		return err
	}
	if err != nil && f.session.ctx.Err() != nil {
		return context.Cause(f.session.ctx)
	}
	if err != nil {
		f.log.Info("port-forward connection failed", "sandbox", sandbox, "port", port, "error", err)
		discard(stream)
	}
	return nil
}

// discard closes a stream whose connection has failed. The reset drops what the
// client still sends: input that is not read holds up the other streams.
func discard(stream io.ReadWriteCloser) {
	// If one fails the client's connection is broken, which ends the session.
	_ = stream.Close()
	if s, ok := stream.(interface{ Reset() error }); ok {
		_ = s.Reset()
	}
}

// join copies between the client's stream and the pod's connection. The end of
// one direction is passed on as such; the other goes on.
func (f *forwarder) join(stream io.ReadWriteCloser, conn *net.TCPConn) error {
	ctx := f.session.ctx
	stop := context.AfterFunc(ctx, func() {
		// The error is that of the copy which this ends.
		_ = conn.Close()
	})
	defer stop()

	sent := make(chan struct{})
	var stalled atomic.Bool
	f.session.work.Go(func() {
		defer close(sent)
		// A failure to send is known by receiving: the pod has closed or reset
		// the connection, or stopped reading. The client goes on to send until it
		// has the answer.
		from := f.session.idle.reader(stream)
		if _, err := io.Copy(timedWriter{conn, f.timeout}, from); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				stalled.Store(true)
				_ = conn.Close() // ends the receiving, which resets the stream
			}
			_, _ = io.Copy(io.Discard, from)
		}
		_ = conn.CloseWrite()
	})
	defer func() {
		// Everything that was to be sent has been.
		_ = conn.Close()
	}()
	if _, err := io.Copy(f.session.idle.writer(stream), conn); err != nil {
		// Reset by the pod, or the client is gone. The stream is reset for
		// this error, and that ends the sending as well.
		if stalled.Load() {
			err = fmt.Errorf("the pod took no input for %v", f.timeout)
		}
		return err
	}
	// Says EOF to the client. If that fails its connection is broken, which
	// ends the session.
	_ = stream.Close()
	<-sent
	return nil
}

// timedWriter fails with os.ErrDeadlineExceeded when a write takes longer than the timeout.
type timedWriter struct {
	conn    *net.TCPConn
	timeout time.Duration
}

func (w timedWriter) Write(p []byte) (int, error) {
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return 0, err
	}
	return w.conn.Write(p)
}

// dial connects to port on the loopback of a network namespace; "" is that of
// the host. The error wraps errConnect if no address of the pod takes the connection.
func dial(ctx context.Context, netns string, port uint16) (*net.TCPConn, error) {
	var failures []string
	for _, loopback := range loopbacks {
		to := netip.AddrPortFrom(loopback, port)
		conn, err := dialIn(ctx, netns, to)
		if err == nil {
			return conn, nil
		}
		op, ok := errors.AsType[*net.OpError](err)
		if !ok {
			return nil, err
		}
		// Without the address that it was dialled from, which is none.
		failures = append(failures, fmt.Sprintf("%s: %v", to, op.Err))
	}
	return nil, fmt.Errorf("%w: %s", errConnect, strings.Join(failures, "; "))
}

// dialIn connects from inside netns. A socket belongs to the namespace of the
// thread that made it, wherever it is used later.
func dialIn(ctx context.Context, netns string, to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var conn *net.TCPConn
	connect := func() (err error) {
		conn, err = new(net.Dialer).DialTCP(ctx, "tcp", netip.AddrPort{}, to)
		return err
	}
	if netns == "" {
		err := connect()
		return conn, err
	}
	err := namespace.Do(netns, connect)
	if err != nil && conn != nil {
		err = errors.Join(err, conn.Close())
	}
	return conn, err
}
