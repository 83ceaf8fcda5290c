package supervisor

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// gate counts the operations under way, so that an upgrade can wait for them and
// keep further ones out.
type gate struct {
	mu    sync.Mutex
	count int
	shut  bool
	empty chan struct{} // closed when count falls to 0 while shut
	// calm fires when nothing has been asked for a while.
	calm *time.Timer
}

// calmDelay is how long nothing must be asked for before memory is given back.
const calmDelay = 2 * time.Second

// newGate makes a gate; the memory that operations needed is given back to the
// kernel when there has been none for a while.
func newGate() *gate { return &gate{calm: time.AfterFunc(calmDelay, debug.FreeOSMemory)} }

// enter begins an operation; ErrAborted means that it was not begun and that the
// client should ask the next generation.
func (g *gate) enter() (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return nil, fmt.Errorf("supervisor is being upgraded: %w", errdefs.ErrAborted)
	}
	g.count++
	return func() {
		g.calm.Reset(calmDelay)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.count--; g.shut && g.count == 0 {
			close(g.empty)
		}
	}, nil
}

// close keeps operations out and waits for those under way. After an error the gate is open again.
func (g *gate) close(ctx context.Context) error {
	g.mu.Lock()
	if g.shut {
		g.mu.Unlock()
		return fmt.Errorf("supervisor is being upgraded already: %w", errdefs.ErrFailedPrecondition)
	}
	g.shut, g.empty = true, make(chan struct{})
	if g.count == 0 {
		close(g.empty)
	}
	empty := g.empty
	g.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		g.open()
		return fmt.Errorf("wait for operations under way: %w", ctx.Err())
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
}

// countingListener tells when the last client has gone.
type countingListener struct {
	net.Listener
	none func()

	mu    sync.Mutex
	count int
}

// Accept counts a client.
func (l *countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	return &countedConn{Conn: conn, gone: sync.OnceFunc(l.gone)}, nil
}

func (l *countingListener) gone() {
	l.mu.Lock()
	l.count--
	last := l.count == 0
	l.mu.Unlock()
	if last {
		l.none()
	}
}

// ifNone calls fn when there is no client.
func (l *countingListener) ifNone(fn func()) {
	l.mu.Lock()
	none := l.count == 0
	l.mu.Unlock()
	if none {
		fn()
	}
}

type countedConn struct {
	net.Conn
	gone func()
}

// Close closes the connection and counts it out.
func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.gone()
	return err
}
