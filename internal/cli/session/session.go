// Package session is the client's end of exec and attach: it connects to the
// URL that a CRI runtime hands out and carries the standard streams, terminal
// sizes and the exit code of a session over SPDY or, where a server refuses
// that, over WebSocket.
package session

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// connectTimeout bounds everything up to the first byte of a session.
	connectTimeout = 30 * time.Second
	// maxStatus bounds the status that a server sends at the end.
	maxStatus = 64 << 10
	// maxRefusal bounds how much of a refusal is quoted.
	maxRefusal = 4 << 10
)

// ErrDetached is what Streams.Stdin returns from Read to leave a session
// without ending what runs in it. Run then returns it too.
var ErrDetached = errors.New("detached")

// ErrLost says that the connection broke before the session ended, so that
// nothing is known about what runs in it.
var ErrLost = errors.New("connection to the streaming server lost before the session ended")

// Size is the size of a terminal in characters.
type Size struct {
	Width, Height uint16
}

// Streams is what a session is connected to on this side. Nil streams are not
// opened.
type Streams struct {
	// Stdin is closed by Run, which must make a Read in flight return.
	Stdin io.ReadCloser
	// Stdout and Stderr receive what comes; Stderr is not used with TTY.
	Stdout, Stderr io.Writer
	// TTY says that the other side has a terminal.
	TTY bool
	// TLS is used where the URL asks for it; nil trusts the system's authorities.
	TLS *tls.Config
	// Resize delivers the sizes of the terminal, the present one first.
	Resize <-chan Size
	// Connected, if set, is called once the streams are open and before the
	// first output.
	Connected func()
}

// ExitError is a session whose process ended with another exit code than 0.
type ExitError struct {
	// Code is the exit code.
	Code int
}

// Error names the code.
func (e *ExitError) Error() string {
	return "exit code " + strconv.Itoa(e.Code)
}

// Run carries one session until it ends. A nil error means that the process
// ended with 0, or that an attached container ended; a process with another
// code gives *ExitError. locate returns the URL of the session; it is called
// again if the server does not speak SPDY, since a URL serves once.
func Run(ctx context.Context, locate func(context.Context) (string, error), s Streams) error {
	if s.Stdin != nil {
		closeStdin := sync.OnceValue(s.Stdin.Close)
		s.Stdin = onceCloser{Reader: s.Stdin, close: closeStdin}
		// The result carries no news: what was read is sent, the rest is not ours.
		defer closeStdin() //nolint:errcheck // see above
	}
	conn, err := connect(ctx, locate, s)
	if err != nil {
		return err
	}
	return carry(ctx, conn, s)
}

type onceCloser struct {
	io.Reader

	close func() error
}

// Close closes the stream the first time, and tells the same afterwards.
func (c onceCloser) Close() error { return c.close() }

// connection is an open session, whatever carries it.
type connection interface {
	// stdin, stdout, stderr and resize are nil if they were not asked for.
	stdin() io.WriteCloser
	stdout() io.Reader
	stderr() io.Reader
	resize() io.Writer
	// status ends with the session and then holds how it ended.
	status() io.Reader
	// close ends everything at once.
	close() error
}

// errNoSPDY is an upgrade that the server refused.
var errNoSPDY = errors.New("SPDY refused")

func connect(ctx context.Context, locate func(context.Context) (string, error), s Streams) (connection, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	first, err := locateURL(ctx, locate)
	if err != nil {
		return nil, err
	}
	conn, err := dialSPDY(ctx, first, s)
	if !errors.Is(err, errNoSPDY) {
		return conn, err
	}
	second, locateErr := locateURL(ctx, locate)
	if locateErr != nil {
		return nil, errors.Join(err, locateErr)
	}
	conn, wsErr := dialWebSocket(ctx, second, s)
	if wsErr != nil {
		return nil, fmt.Errorf("%w; then %w", err, wsErr)
	}
	return conn, nil
}

func locateURL(ctx context.Context, locate func(context.Context) (string, error)) (*url.URL, error) {
	text, err := locate(ctx)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("parse streaming URL: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("the runtime returned the streaming URL %q; want an http URL with a host", text)
	}
	return u, nil
}

// carry moves bytes both ways until the far side has ended its output and said
// how the session ended. When it returns, all its goroutines have ended.
func carry(ctx context.Context, conn connection, s Streams) error {
	stop := sync.OnceValue(conn.close)
	defer context.AfterFunc(ctx, func() { _ = stop() })() // the context's error is returned instead

	var input sync.WaitGroup
	detached := make(chan struct{})
	if in := conn.stdin(); in != nil {
		input.Go(func() {
			if sendStdin(in, s.Stdin) {
				close(detached)
				_ = stop() // leaving on purpose; the far side needs no farewell
			}
		})
	}
	ended := make(chan struct{})
	if conn.resize() != nil {
		input.Go(func() { sendSizes(conn.resize(), s.Resize, ended) })
	}
	if s.Connected != nil {
		s.Connected()
	}
	err := receive(conn, s)
	close(ended)
	_ = stop() // all that was to come has come
	if s.Stdin != nil {
		_ = s.Stdin.Close() // only ends a Read in flight
	}
	input.Wait()
	select {
	case <-detached:
		return ErrDetached
	default:
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// receive copies the output and then reads how the session ended.
func receive(conn connection, s Streams) error {
	var output sync.WaitGroup
	var outErr, errErr error
	if r := conn.stdout(); r != nil {
		output.Go(func() { outErr = copyOutput(s.Stdout, r) })
	}
	if r := conn.stderr(); r != nil {
		output.Go(func() { errErr = copyOutput(s.Stderr, r) })
	}
	// The status comes after the output, but a server that fails early sends
	// nothing else, so it is read at the same time.
	text, statusErr := io.ReadAll(io.LimitReader(conn.status(), maxStatus))
	output.Wait()
	if err := errors.Join(outErr, errErr); err != nil {
		return err
	}
	if len(text) == 0 {
		if statusErr != nil {
			return fmt.Errorf("%w: %w", ErrLost, statusErr)
		}
		return ErrLost
	}
	return parseStatus(text)
}

// copyOutput copies until the far side ends. When this side cannot be written
// any more, the rest is drained, since a full stream would stall the others.
// A read error shows as a missing status.
func copyOutput(w io.Writer, r io.Reader) error {
	sink := &stickyWriter{w: w}
	_, _ = io.Copy(sink, r) // see above
	if sink.err != nil {
		return fmt.Errorf("write output: %w", sink.err)
	}
	return nil
}

type stickyWriter struct {
	w   io.Writer
	err error
}

func (s *stickyWriter) Write(p []byte) (int, error) {
	if s.err == nil {
		_, s.err = s.w.Write(p)
	}
	return len(p), nil
}

// sendStdin copies until there is no more and says whether the user detached.
// An error of the far side is in the status.
func sendStdin(w io.WriteCloser, r io.Reader) (detached bool) {
	_, err := io.Copy(w, struct{ io.Reader }{r})
	if errors.Is(err, ErrDetached) {
		return true
	}
	_ = w.Close() // half-close; if the far side is gone, so is its need
	return false
}

func sendSizes(w io.Writer, sizes <-chan Size, ended <-chan struct{}) {
	enc := json.NewEncoder(w)
	for {
		select {
		case <-ended:
			return
		case size, ok := <-sizes:
			if !ok || enc.Encode(size) != nil { // a broken stream shows in the status
				return
			}
		}
	}
}

// status is the part of the Kubernetes Status that ends a session.
type status struct {
	Status  string `json:"status"`
	Message string `json:"message"`
	Reason  string `json:"reason"`
	Details struct {
		Causes []struct {
			Reason  string `json:"reason"`
			Message string `json:"message"`
		} `json:"causes"`
	} `json:"details"`
}

// parseStatus turns the status at the end of a session into an error.
func parseStatus(text []byte) error {
	var st status
	if err := json.Unmarshal(text, &st); err != nil {
		return fmt.Errorf("the streaming server ended the session with %q", text)
	}
	if st.Status == "Success" {
		return nil
	}
	if st.Reason == "NonZeroExitCode" {
		for _, cause := range st.Details.Causes {
			if cause.Reason != "ExitCode" {
				continue
			}
			code, err := strconv.ParseUint(cause.Message, 10, 8)
			if err != nil {
				return fmt.Errorf("the streaming server sent the exit code %q", cause.Message)
			}
			return &ExitError{Code: int(code)}
		}
	}
	if st.Message == "" {
		return fmt.Errorf("the streaming server ended the session with %q", text)
	}
	message := st.Message
	for _, wrapped := range []string{wrapInternal, wrapExec, wrapAttach} {
		message = strings.TrimPrefix(message, wrapped)
	}
	return errors.New(message)
}

// What stream servers put in front of the runtime's own words.
const (
	wrapInternal = "Internal error occurred: "
	wrapExec     = "error executing command in container: "
	wrapAttach   = "error attaching to container: "
)
