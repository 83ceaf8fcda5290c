package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"syscall"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// registryUnavailable begins the text of an error which the kubelet shows as
// its own reason for a pod that waits.
const registryUnavailable = "RegistryUnavailable"

// describe says what went wrong with a pull, and gives it its kind.
func describe(ref string, err error) error {
	kind := kindOf(err)
	switch {
	case errors.Is(kind, errdefs.ErrUnavailable):
		return fmt.Errorf("%s: pull %s: %w", registryUnavailable, ref, withKind(err, kind))
	case errors.Is(kind, errdefs.ErrResourceExhausted):
		return fmt.Errorf("pull %s: the disk is full: %w", ref, withKind(err, kind))
	default:
		return fmt.Errorf("pull %s: %w", ref, withKind(err, kind))
	}
}

func withKind(err, kind error) error {
	if kind == nil || errors.Is(kind, errdefs.ErrUnknown) || errors.Is(err, kind) {
		return err
	}
	return fmt.Errorf("%w: %w", err, kind)
}

// ourKinds are those that a caller tells apart, when the error says itself
// what it is.
var ourKinds = []error{
	errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrFailedPrecondition, errdefs.ErrUnauthenticated,
	errdefs.ErrPermissionDenied, errdefs.ErrResourceExhausted, errdefs.ErrUnavailable, errdefs.ErrDataLoss,
}

func kindOf(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case errors.Is(err, errAbandoned), errors.Is(err, context.Canceled):
		return nil
	case isFull(err):
		return errdefs.ErrResourceExhausted
	case errors.As(err, &status):
		return kindOfStatus(status.StatusCode)
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return errdefs.ErrUnauthenticated
	case isUnreachable(err):
		return errdefs.ErrUnavailable
	}
	if at := slices.IndexFunc(ourKinds, func(kind error) bool { return errors.Is(err, kind) }); at >= 0 {
		return ourKinds[at]
	}
	return errdefs.ErrUnknown
}

func kindOfStatus(code int) error {
	switch {
	case code == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case code == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case code == http.StatusNotFound:
		return errdefs.ErrNotFound
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= http.StatusInternalServerError:
		return errdefs.ErrUnavailable
	default:
		return errdefs.ErrUnknown
	}
}

// wrongBytesError says that what came is not what was asked for.
type wrongBytesError struct {
	digest digest.Digest
	text   string
}

// Error says what came.
func (e *wrongBytesError) Error() string { return e.text }

// Unwrap gives the error its kind.
func (e *wrongBytesError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// isFull says whether the disk, or our share of it, is full.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// remoteError is one that occurred while a registry was spoken to. Without it
// a connection that broke off could not be distinguished from an archive that is cut,
// nor an address from a file that cannot be reached.
type remoteError struct{ error }

// maxRemoteText bounds what of a registry's answer gets into an error.
const maxRemoteText = 4 << 10

// query is what follows the path of an address. Registries send clients on to
// addresses that are signed: they allow a fetch without an account.
var query = regexp.MustCompile(`(https?://[^\s"?]+)\?[^\s"]*[^\s":]`)

// Error returns the cause's text without secrets.
func (e remoteError) Error() string {
	text := query.ReplaceAllString(e.error.Error(), "$1?…")
	return text[:min(len(text), maxRemoteText)]
}

// Unwrap returns the cause.
func (e remoteError) Unwrap() error { return e.error }

// isUnreachable says whether a registry could not be spoken to, or broke off.
func isUnreachable(err error) bool {
	var remote remoteError
	if !errors.As(err, &remote) {
		return false
	}
	var stalled *stallError
	var network net.Error
	return errors.As(remote, &stalled) || errors.As(remote, &network) || errors.Is(remote, io.ErrUnexpectedEOF)
}
