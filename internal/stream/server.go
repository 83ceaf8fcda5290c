package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// headerTimeout bounds how long a client may take to send its request.
	headerTimeout = 10 * time.Second
	// keepAliveTimeout closes connections on which no session began.
	keepAliveTimeout = 30 * time.Second
	// maxHeaderBytes bounds the request of a client.
	maxHeaderBytes = 64 << 10
	// defaultIdleTimeout is kubelet's own.
	defaultIdleTimeout = 4 * time.Hour
	// creationTimeout bounds how long a client may take to open its streams.
	creationTimeout = 30 * time.Second
	// noTimeout keeps the protocol libraries from ending idle connections: they
	// take what keeps a connection open for use of it, and give no reason.
	noTimeout = 0
	// drainGrace is how long sessions may go on after a shutdown has begun
	// before they are ended: enough for a command about to finish.
	drainGrace = time.Second
)

// Meter counts sessions while they are open.
type Meter interface {
	Session(kind string) (done func())
}

// Options are what a [Server] needs.
type Options struct {
	// Address and Port are where to listen; port 0 takes any.
	Address string
	Port    int
	// TLS, if not nil, encrypts the sessions.
	TLS *TLS
	// IdleTimeout ends a session on which no data moves; 0 means 4 hours.
	IdleTimeout time.Duration
	// ForwardTimeout ends a forwarded connection whose pod takes none of its input, which holds up
	// the other connections of the session; 0 means 10 seconds.
	ForwardTimeout time.Duration
	// Runtime runs what the sessions are about.
	Runtime Runtime
	// Meter counts the sessions.
	Meter Meter
	// Log gets a line per session.
	Log *slog.Logger
}

// Server grants sessions as URLs and serves them.
type Server struct {
	runtime  Runtime
	meter    Meter
	log      *slog.Logger
	listener net.Listener
	base     url.URL
	http     *http.Server
	tickets  *tickets
	sessions *sessions
	// forwardTimeout is that of [Options].
	forwardTimeout time.Duration
}

// Listen opens the server's socket; [Server.Serve] answers on it.
func Listen(ctx context.Context, o Options) (*Server, error) {
	address := net.JoinHostPort(o.Address, strconv.Itoa(o.Port))
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for streaming sessions on %s: %w", address, err)
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = defaultIdleTimeout
	}
	s := &Server{
		runtime:  o.Runtime,
		meter:    o.Meter,
		log:      o.Log,
		listener: listener,
		base:     url.URL{Scheme: "http", Host: reachable(listener.Addr())},
		tickets:  newTickets(time.Now),
		sessions: newSessions(o.IdleTimeout),

		forwardTimeout: cmp.Or(o.ForwardTimeout, defaultForwardTimeout),
	}
	if o.TLS != nil {
		c, err := openCertificates(*o.TLS, listener.Addr(), o.Log)
		if err != nil {
			return nil, errors.Join(err, listener.Close())
		}
		s.listener, s.base.Scheme = c.listener(listener), "https"
	}
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       keepAliveTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn),
	}
	return s, nil
}

// reachable answers a host and port that a client on this node can connect to:
// a server that listens on every address is named by its loopback one.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	loopback := net.IPv6loopback
	if tcp.IP.To4() != nil {
		loopback = net.IPv4(127, 0, 0, 1)
	}
	return net.JoinHostPort(loopback.String(), strconv.Itoa(tcp.Port))
}

// Addr answers where the server listens.
func (s *Server) Addr() net.Addr {
	return s.listener.Addr()
}

// Serve answers clients until [Server.Shutdown].
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve streaming sessions on %s: %w", s.listener.Addr(), err)
	}
	return nil
}

// Exec grants a session that runs cmd in a container and answers its URL.
func (s *Server) Exec(containerID string, cmd []string, p Pipes) (string, error) {
	if len(cmd) == 0 {
		return "", fmt.Errorf("cmd: want at least the program to run: %w", errdefs.ErrInvalidArgument)
	}
	if err := p.validate(); err != nil {
		return "", err
	}
	return s.grant(ticket{kind: kindExec, owner: containerID, command: cmd, pipes: p})
}

// Attach grants a session with a container's own process and answers its URL.
func (s *Server) Attach(containerID string, p Pipes) (string, error) {
	if err := p.validate(); err != nil {
		return "", err
	}
	return s.grant(ticket{kind: kindAttach, owner: containerID, pipes: p})
}

// PortForward grants a session that connects to ports inside a sandbox and
// answers its URL. Clients that name the ports per connection may leave ports
// empty.
func (s *Server) PortForward(sandboxID string, ports []int32) (string, error) {
	for _, p := range ports {
		if p < 1 || p > 65535 {
			return "", fmt.Errorf("port %d: want 1 to 65535: %w", p, errdefs.ErrInvalidArgument)
		}
	}
	return s.grant(ticket{kind: kindPortForward, owner: sandboxID, ports: ports})
}

// End ends the sessions of a container or sandbox that is gone and voids the
// URLs granted for it. It does not wait for them.
func (s *Server) End(ownerID string) {
	s.tickets.revoke(ownerID)
	for _, session := range s.sessions.of(ownerID) {
		session.stop(errOwnerGone)
	}
}

// Shutdown refuses new sessions, lets those in progress end by themselves for
// a moment, then tells them to end, and when ctx ends cuts them. A nil error
// means that no session is left.
func (s *Server) Shutdown(ctx context.Context) error {
	idle := s.sessions.close()
	if err := s.http.Close(); err != nil {
		s.log.Warn("close the stream server's listener", "error", err)
	}
	// Close knows only listeners that Serve has seen.
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Warn("close the stream server's listener", "error", err)
	}
	grace, cancel := context.WithTimeout(ctx, drainGrace)
	defer cancel()
	select {
	case <-idle:
		return nil
	case <-grace.Done():
	}
	for _, session := range s.sessions.of("") {
		session.stop(errShutdown)
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	left := s.sessions.of("")
	for _, session := range left {
		session.cut()
	}
	return fmt.Errorf("end %d streaming sessions: %w", len(left), ctx.Err())
}

// validate refuses what no protocol can carry.
func (p Pipes) validate() error {
	if p.Terminal && p.Stderr {
		return fmt.Errorf("stderr: a terminal has none of its own, want false with tty: %w", errdefs.ErrInvalidArgument)
	}
	if !p.Stdin && !p.Stdout && !p.Stderr {
		return fmt.Errorf("stdin, stdout, stderr: want at least one of them: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// grant issues t and answers the URL that redeems it.
func (s *Server) grant(t ticket) (string, error) {
	token, err := s.tickets.issue(t)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(t.kind, token).String(), nil
}
