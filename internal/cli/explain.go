package cli

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-runtime/berth/internal/cli/session"
	"github.com/berth-runtime/berth/internal/config"
)

var (
	// transportWords are those of gRPC in front of the runtime's own.
	transportWords = regexp.MustCompile(`rpc error: code = \w+ desc = `)
	// deadlineWords are those of gRPC for a runtime that does not answer.
	deadlineWords = regexp.MustCompile(`context deadline exceeded while waiting for connections to become ready|received context error while waiting for new LB policy update: context deadline exceeded`)
	// longID is an ID in full, not that of a digest.
	longID = regexp.MustCompile(`(^|[^:0-9a-f])([0-9a-f]{12})[0-9a-f]{52}\b`)
	// kindWords say of what kind an error is that has said what is wrong.
	kindWords = regexp.MustCompile(`: (invalid argument|failed precondition)( \(pod [^)]*\))?$`)
)

// explain returns the text of an error as people want to read it: without the
// words of the transport, with short IDs, and nothing twice in a row.
func explain(err error) string {
	text := transportWords.ReplaceAllString(err.Error(), "")
	text = deadlineWords.ReplaceAllString(text, "the runtime does not answer")
	text = longID.ReplaceAllString(text, "$1$2")
	text = kindWords.ReplaceAllString(text, "$2")
	parts := slices.Compact(strings.Split(text, ": "))
	return strings.Join(parts, ": ")
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
	if errors.Is(err, session.ErrLost) {
		return "The runtime has restarted or the connection broke. The container goes on: see berth ps"
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
		return "The runtime went away or is starting. " + logHint
	case codes.Unimplemented:
		return "The runtime behind this socket cannot do that. See: berth version"
	case codes.PermissionDenied, codes.Unauthenticated:
		return "If this is about a registry, give credentials with: berth pull --creds USER IMAGE"
	case codes.ResourceExhausted:
		return "See what is full with: berth check; df -h; df -i"
	}
	return ""
}

const (
	logHint  = "Its log says more; where it is a service: journalctl -u berthd -e"
	slowHint = "To wait longer, use --timeout. What the runtime does is in its log; where it is a service: journalctl -u berthd -e"
	// startHint is the same with and without an init system.
	startHint = "Start it as root with: berthd; or, where it is a service: systemctl start berthd"
)

func connectHint(err *connectError) string {
	switch {
	case errors.Is(err.err, fs.ErrNotExist) && err.endpoint == config.DefaultListen:
		return "berthd is not running. " + startHint + "\nIf its socket is elsewhere, name it with --endpoint or $" + endpointVariable + "."
	case errors.Is(err.err, fs.ErrNotExist):
		return "There is no such socket. Is the runtime running, and does it listen there?"
	case errors.Is(err.err, syscall.ECONNREFUSED):
		return "The socket exists but no process listens: the runtime has ended. " + startHint
	case errors.Is(err.err, fs.ErrPermission):
		return "The socket belongs to root. Try again with: sudo berth …"
	case errors.Is(err.err, os.ErrDeadlineExceeded):
		return "The runtime does not accept connections. " + logHint
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
