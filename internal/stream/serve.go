package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// ServeHTTP takes the ticket that the path names and serves its session. Every
// protocol begins here: a new one needs a case in its kind's function.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "want GET or POST", http.StatusMethodNotAllowed)
		return
	}
	t, ok := s.tickets.redeem(kind, token)
	if !ok {
		http.Error(w, "no such session: its URL was used, has expired or was never given out", http.StatusNotFound)
		return
	}
	session, err := s.sessions.begin(r.Context(), t.kind, t.owner)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	//nolint:contextcheck // The session's context is made from the request's.
	s.run(session, t, &hijacker{ResponseWriter: w, adopt: session.adopt}, r.WithContext(session.ctx))
}

// run serves one session to its end and says so in the log.
func (s *Server) run(session *session, t ticket, w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	done := s.meter.Session(t.kind)
	defer func() {
		failure, interrupted := session.outcome()
		session.finish()
		done()
		line := s.log.With("kind", t.kind, "owner", t.owner, "duration", time.Since(begun))
		if failure != nil {
			line = line.With("error", failure)
		}
		if interrupted != nil {
			line = line.With("interrupted", interrupted)
		}
		line.Info("streaming session")
		s.sessions.remove(session)
	}()
	if t.kind == kindPortForward {
		s.forward(session, t, w, r)
	} else {
		s.command(session, t, w, r)
	}
}

// command serves exec and attach.
func (s *Server) command(session *session, t ticket, w http.ResponseWriter, r *http.Request) {
	e := &executor{s.runtime, session, t.pipes}
	options := &remotecommand.Options{Stdin: t.pipes.Stdin, Stdout: t.pipes.Stdout, Stderr: t.pipes.Stderr, TTY: t.pipes.Terminal}
	switch {
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		if err := e.serveChannels(w, r, t); err != nil {
			session.over(err)
		}
	case t.kind == kindExec:
		remotecommand.ServeExec(w, r, e, "", "", t.owner, t.command, options,
			noTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
	default:
		remotecommand.ServeAttach(w, r, e, "", "", t.owner, options,
			noTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
	}
}

// forward serves port-forward.
func (s *Server) forward(session *session, t ticket, w http.ResponseWriter, r *http.Request) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, &forwarder{s.runtime, session, s.log, s.forwardTimeout}, t.owner, "", &portforward.V4Options{Ports: t.ports},
			noTimeout, creationTimeout, portforward.SupportedProtocols)
	}
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		serveTunnel(w, r, serve)
	} else {
		serve(w, r)
	}
}

// executor runs the process of one exec or attach session.
type executor struct {
	runtime Runtime
	session *session
	pipes   Pipes
}

// ExecInContainer implements [remotecommand.Executor]. A non-zero exit code is
// an error there, which the protocol carries to the client as a code.
func (e *executor) ExecInContainer(ctx context.Context, _, _, container string, cmd []string, in io.Reader, out, err io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	code, failure := e.runtime.Exec(ctx, container, cmd, e.streams(ctx, in, out, err, resize))
	failure = e.over(failure)
	if failure != nil {
		return failure
	}
	if code != 0 {
		return utilexec.CodeExitError{Code: code, Err: fmt.Errorf("exit code %d", code)}
	}
	return nil
}

// AttachContainer implements [remotecommand.Attacher].
func (e *executor) AttachContainer(ctx context.Context, _, _, container string, in io.Reader, out, err io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize,
) error {
	return e.over(e.runtime.Attach(ctx, container, e.streams(ctx, in, out, err, resize)))
}

// over ends the work of the session. The error names the reason for which the
// work was interrupted, if it was.
func (e *executor) over(failure error) error {
	if _, interrupted := e.session.outcome(); interrupted != nil && failure != nil && !errors.Is(failure, interrupted) {
		failure = fmt.Errorf("%w: %w", interrupted, failure)
	}
	e.session.over(failure)
	return failure
}

// streams keeps of what the library offers only what the client asked for: a
// WebSocket has every channel, wanted or not.
func (e *executor) streams(ctx context.Context, in io.Reader, out, err io.WriteCloser, resize <-chan remotecommand.TerminalSize) Streams {
	s := Streams{Terminal: e.pipes.Terminal}
	if e.pipes.Stdin {
		s.Stdin = e.session.idle.reader(in)
	}
	if e.pipes.Stdout {
		s.Stdout = e.session.idle.writer(out)
	}
	if e.pipes.Stderr {
		s.Stderr = e.session.idle.writer(err)
	}
	if resize != nil {
		s.Resize = sizes(ctx, resize)
	}
	return s
}

// sizes passes terminal sizes on until there are no more or ctx ends.
func sizes(ctx context.Context, from <-chan remotecommand.TerminalSize) <-chan Size {
	to := make(chan Size)
	go func() {
		defer close(to)
		for size := range from {
			select {
			case to <- Size(size):
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}
