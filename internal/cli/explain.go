package cli

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-runtime/berth/internal/config"
)

// explain returns the text of an error without the words of the transport.
func explain(err error) string {
	text := err.Error()
	// Wrapped status errors hold their transport's words in the middle.
	for {
		start := strings.Index(text, "rpc error: code = ")
		if start < 0 {
			return text
		}
		const desc = " desc = "
		end := strings.Index(text[start:], desc)
		if end < 0 {
			return text
		}
		text = text[:start] + text[start+end+len(desc):]
	}
}

// hintedError is an error that comes with what to do about it.
type hintedError struct {
	err  error
	next string
}

func (e *hintedError) Error() string { return e.err.Error() }
func (e *hintedError) Unwrap() error { return e.err }

// hint says what to do about an error, empty if the error says it all.
func (a *app) hint(err error) string {
	if hinted, ok := errors.AsType[*hintedError](err); ok {
		return hinted.next
	}
	if conn, ok := errors.AsType[*connectError](err); ok {
		return connectHint(conn)
	}
	if errors.Is(err, context.Canceled) {
		return ""
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return slowHint
	}
	st, ok := status.FromError(err)
	if !ok {
		return ""
	}
	switch st.Code() {
	case codes.DeadlineExceeded:
		return slowHint
	case codes.Unavailable:
		return "The runtime went away or is starting. See: systemctl status berth; journalctl -u berth -e"
	case codes.Unimplemented:
		return "The runtime behind this socket cannot do that. See: berth version"
	case codes.PermissionDenied, codes.Unauthenticated:
		return "If this is about a registry, give credentials with: berth pull --creds USER IMAGE"
	case codes.ResourceExhausted:
		return "See what is full with: berth check; df -h; df -i"
	}
	return ""
}

const slowHint = "No answer in time. What the daemon does now is in: journalctl -u berth -e. To wait longer, use --timeout."

func connectHint(err *connectError) string {
	switch {
	case errors.Is(err.err, fs.ErrNotExist) && err.endpoint == config.DefaultListen:
		return "berthd is not running. Start it with: systemctl start berth\n" +
			"If its socket is elsewhere, name it with --endpoint or $" + endpointVariable + "."
	case errors.Is(err.err, fs.ErrNotExist):
		return "There is no such socket. Is the runtime running, and does it listen there?"
	case errors.Is(err.err, syscall.ECONNREFUSED):
		return "The socket is there but nobody listens: the runtime has ended. Start it with: systemctl start berth"
	case errors.Is(err.err, fs.ErrPermission):
		return "The socket belongs to root. Try again with: sudo berth …"
	case errors.Is(err.err, os.ErrDeadlineExceeded):
		return "The runtime does not accept connections. See: systemctl status berth; journalctl -u berth -e"
	}
	return ""
}

// socketError strips what net says about a socket that is named anyway.
func socketError(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) {
		return err
	}
	if call, ok := errors.AsType[*os.SyscallError](op.Err); ok {
		return call.Err
	}
	return op.Err
}
