package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"github.com/berth-runtime/berth/internal/namespace"
)

// dialTimeout bounds one attempt to connect to a port inside a pod. Loopback
// answers at once or not at all.
const dialTimeout = 5 * time.Second

// loopbacks are tried in this order, as kubelet's users expect of "localhost".
var loopbacks = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// forwarder connects the streams of one port-forward session to ports.
type forwarder struct {
	runtime Runtime
	session *session
	log     *slog.Logger
}

// PortForward implements [portforward.PortForwarder] for one connection: it
// returns when both directions have ended. The library calls it in goroutines
// of its own and with a context that never ends, so the session's context rules
// and a panic stops here.
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
	if err != nil && f.session.ctx.Err() != nil {
		return context.Cause(f.session.ctx)
	}
	if err != nil {
		return err
	}
	return f.join(stream, conn)
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
	f.session.work.Go(func() {
		defer close(sent)
		// A failure to send is known by receiving: the pod has closed or reset
		// the connection. Otherwise the client has no more to say.
		_, _ = io.Copy(conn, f.session.idle.reader(stream))
		_ = conn.CloseWrite()
	})
	defer func() {
		// Everything that was to be sent has been.
		_ = conn.Close()
	}()
	if _, err := io.Copy(f.session.idle.writer(stream), conn); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Reset by the pod, or the client is gone. The library resets the
		// stream for this error, and that ends the sending as well.
		return err
	}
	// Says EOF to the client. If that fails its connection is broken, which
	// ends the session.
	_ = stream.Close()
	<-sent
	return nil
}

// dial connects to port on the loopback of a network namespace; "" is that of
// the host.
func dial(ctx context.Context, netns string, port uint16) (*net.TCPConn, error) {
	var failures []string
	for _, loopback := range loopbacks {
		to := netip.AddrPortFrom(loopback, port)
		conn, err := dialIn(ctx, netns, to)
		if err == nil {
			return conn, nil
		}
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err // without the address that it was dialled from, which is none
		}
		failures = append(failures, fmt.Sprintf("%s: %v", to, err))
	}
	return nil, fmt.Errorf("connect: %s", strings.Join(failures, "; "))
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
