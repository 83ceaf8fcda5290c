package shim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/berth-runtime/berth/internal/shim/wire"
)

const (
	// callTimeout bounds a call whose context has no deadline and which runs no OCI runtime.
	callTimeout = time.Minute
	// abandonTimeout bounds the end of an attach that was given up; the supervisor ends it by then, too.
	abandonTimeout = 10 * time.Second
	// connectTimeout bounds one attempt to find or start a supervisor.
	connectTimeout = 20 * time.Second
	// maxAttempts bounds how many supervisors may die under one call.
	maxAttempts = 4
	// maxBackoff bounds the pause between two attempts to connect.
	maxBackoff = 2 * time.Second
	// endPause is what a supervisor that is about to end is given before the next attempt.
	endPause = 20 * time.Millisecond
	// maxAbandoning bounds the calls that are undone at the same time after their callers left. The
	// supervisor undoes the others when nothing collects their results.
	maxAbandoning = 32
	// exitBacklog is how many exits wait for a slow reader before the client stops asking for more.
	exitBacklog = 256
)

// Client talks to the supervisor of one state directory. Its methods may be
// called by many goroutines. A call outlives the supervisor: when that dies, the
// client starts another, hands the descriptors back and repeats the call.
type Client struct {
	opts    Options
	dir     string
	session string
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	exits   chan Exit
	kept    *kept
	// abandoning has a token for each call that was given up and is being undone.
	abandoning chan struct{}

	// mu guards link, changed and lastErr.
	mu      sync.Mutex
	link    *link         // nil while there is no connection
	changed chan struct{} // closed when link or lastErr changes
	lastErr error         // why there is no connection
	leaving bool          // a link that ends is not replaced
}

// link is one connection to one generation of the supervisor.
type link struct {
	rpc   *ttrpc.Client
	shim  wire.ShimService
	fds   *wire.FDConn
	hello *wire.HelloResponse
	gone  chan struct{}
	close func()
}

// Connect finds the supervisor of opts.State, or starts one. A nil error means
// that it answers and that the client holds what it must keep of every running
// process. The caller ends the client with Close; containers run on.
func Connect(ctx context.Context, opts Options) (*Client, error) {
	if opts.State == "" || opts.Binary == "" {
		return nil, fmt.Errorf("connect to supervisor: state directory and binary are needed: %w", errdefs.ErrInvalidArgument)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		opts:    opts,
		dir:     filepath.Join(opts.State, "shim"),
		session: rand.Text(),
		exits:   make(chan Exit, exitBacklog),
		kept:    newKept(opts),
		changed: make(chan struct{}),

		abandoning: make(chan struct{}, maxAbandoning),
	}
	l, err := c.connect(ctx)
	if err != nil {
		c.kept.close()
		return nil, fmt.Errorf("connect to supervisor: %w", err)
	}
	c.link = l
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.wg.Go(func() { c.kept.fdStore.run(c.ctx) })
	c.wg.Go(func() { c.maintain(l) }) //nolint:contextcheck // it lives as long as the client
	c.wg.Go(c.collectExits)
	return c, nil
}

// Close ends the client and closes the descriptors it kept. The supervisor and
// its containers run on; a supervisor without containers ends by itself.
func (c *Client) Close() error {
	c.mu.Lock()
	c.leaving = true
	c.cancel()
	if c.link != nil {
		c.link.close()
	}
	c.mu.Unlock()
	c.wg.Wait()
	c.kept.close()
	return nil
}

// PID returns the process ID of the supervisor that answered last.
func (c *Client) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		return 0
	}
	return int(c.link.hello.Pid)
}

// Version asks the supervisor for its version.
func (c *Client) Version(ctx context.Context) (string, error) {
	l, err := c.current(ctx)
	if err != nil {
		return "", err
	}
	return l.hello.Version, nil
}

// Ping returns nil when the supervisor answers.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.List(ctx)
	return err
}

// Exits delivers exits until Close. They come at least once.
func (c *Client) Exits() <-chan Exit { return c.exits }

// maintain replaces the link whenever it is lost, until the client is closed.
func (c *Client) maintain(l *link) {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-l.gone:
		}
		c.drop(l)
		l.close()
		if c.isLeaving() {
			return
		}
		if l = c.reconnect(); l == nil {
			return
		}
	}
}

// abandon runs undo in the background, for a call whose result has no owner. It does nothing when
// the client ends, with which the session ends, or when too many are at work.
func (c *Client) abandon(limit time.Duration, undo func(ctx context.Context)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving || c.ctx.Err() != nil {
		return
	}
	select {
	case c.abandoning <- struct{}{}:
	default:
		return
	}
	c.wg.Go(func() {
		defer func() { <-c.abandoning }()
		ctx, cancel := context.WithTimeout(c.ctx, limit)
		defer cancel()
		undo(ctx)
	})
}

func (c *Client) isLeaving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaving
}

func (c *Client) setLeaving(leaving bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = leaving
}

// reconnect tries until there is a link, which it returns, or the client is closed.
func (c *Client) reconnect() *link {
	for backoff := 10 * time.Millisecond; c.ctx.Err() == nil; backoff = min(2*backoff, maxBackoff) {
		ctx, cancel := context.WithTimeout(c.ctx, connectTimeout)
		l, err := c.connect(ctx)
		cancel()
		if err == nil {
			c.opts.Log.Info("connected to supervisor", "pid", l.hello.Pid, "version", l.hello.Version)
			c.setLink(l, nil)
			return l
		}
		c.setLink(nil, err)
		c.opts.Log.Error("connect to supervisor", "error", err, "retry_in", backoff)
		select {
		case <-c.ctx.Done():
		case <-time.After(backoff):
		}
	}
	return nil
}

func (c *Client) setLink(l *link, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link, c.lastErr = l, err
	if l != nil && c.ctx.Err() != nil {
		l.close()
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// current returns the link, waiting for one as long as ctx allows.
func (c *Client) current(ctx context.Context) (*link, error) {
	for {
		c.mu.Lock()
		l, changed, lastErr := c.link, c.changed, c.lastErr
		c.mu.Unlock()
		if c.ctx.Err() != nil {
			return nil, fmt.Errorf("supervisor client is closed: %w", errdefs.ErrUnavailable)
		}
		if l != nil {
			return l, nil
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for supervisor: %w", errors.Join(context.Cause(ctx), lastErr))
		}
	}
}

// connect makes one link. A supervisor that answers may be about to end, or about
// to be dead, and one that was started may be killed before it serves; then the
// next one is tried.
func (c *Client) connect(ctx context.Context) (*link, error) {
	for attempt := 1; ; attempt++ {
		l, err := c.tryConnect(ctx)
		again := lostLink(err) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, errLeft) || errors.Is(err, errDied)
		if err == nil || !again || attempt == maxAttempts {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(endPause):
		}
	}
}

// tryConnect finds or starts a supervisor, opens the session and brings the
// descriptors of both sides together.
func (c *Client) tryConnect(ctx context.Context) (*link, error) {
	rpc, err := launch(ctx, c.opts, c.dir)
	if err != nil {
		return nil, err
	}
	l, err := c.open(ctx, rpc)
	if err != nil {
		_ = rpc.close()
		return nil, err
	}
	return l, nil
}

func (c *Client) open(ctx context.Context, conn *rpcConn) (*link, error) {
	service := wire.NewShimClient(conn.client)
	hello, err := service.Hello(ctx, &wire.HelloRequest{Session: c.session})
	if err != nil {
		return nil, fmt.Errorf("open session: %w", wire.Decode(err))
	}
	fds, err := wire.DialFD(filepath.Join(c.dir, wire.FDSocket), hello.Protocol)
	if err != nil {
		return nil, err
	}
	if err := c.bringTogether(ctx, service, fds, hello); err != nil {
		_ = fds.Close()
		return nil, err
	}
	if _, err := service.Settle(ctx, &wire.SettleRequest{Session: c.session}); err != nil {
		_ = fds.Close()
		return nil, fmt.Errorf("settle session: %w", wire.Decode(err))
	}
	return &link{
		rpc: conn.client, shim: service, fds: fds, hello: hello, gone: conn.gone,
		close: sync.OnceFunc(func() {
			_ = fds.Close()
			_ = conn.close()
		}),
	}, nil
}

// bringTogether gives both sides all descriptors that one of them has, and those
// that the service manager has kept.
func (c *Client) bringTogether(ctx context.Context, service wire.ShimService, fds *wire.FDConn, hello *wire.HelloResponse) error {
	if c.kept.inherits() {
		list, err := service.List(ctx, &wire.Empty{})
		if err != nil {
			return fmt.Errorf("list containers whose descriptors were kept: %w", wire.Decode(err))
		}
		ids := make([]string, 0, len(list.Containers))
		for _, held := range list.Containers {
			ids = append(ids, held.Id)
		}
		c.kept.inherit(ids)
	}
	return c.kept.reconcile(fds, hello)
}

// invoke runs one call on the current link, and again on the next one when the
// supervisor died under it.
func invoke[R any](ctx context.Context, c *Client, what string,
	call func(ctx context.Context, l *link) (R, error),
) (R, error) {
	var none R
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	for attempt := 1; ; attempt++ {
		l, err := c.current(ctx)
		if err != nil {
			return none, fmt.Errorf("%s: %w", what, err)
		}
		result, err := call(ctx, l)
		if err == nil {
			return result, nil
		}
		refused := errdefs.IsAborted(wire.Decode(err)) // by an upgrade, before anything was done
		if !lostLink(err) && !refused {
			return none, about(what, wire.Decode(err))
		}
		if attempt == maxAttempts || ctx.Err() != nil {
			return none, fmt.Errorf("%s: supervisor went away during the call: %w", what, errdefs.ErrUnavailable)
		}
		l.close() // one of its two connections is gone; the other is of no use
		select {
		case <-l.gone:
			c.drop(l)
		case <-ctx.Done():
		}
	}
}

// about says what an error is about, unless the supervisor has said it.
func about(what string, err error) error {
	if strings.HasPrefix(err.Error(), what+": ") {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// drop forgets l if maintain has not done so yet, so that a repeated call waits for the next link.
func (c *Client) drop(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == l {
		c.link = nil
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// lostLink tells a broken connection from an answer.
func lostLink(err error) bool {
	for _, sign := range []error{ttrpc.ErrClosed, ttrpc.ErrStreamClosed, net.ErrClosed, io.EOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, sign) {
			return true
		}
	}
	return false
}
