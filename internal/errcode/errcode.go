// Package errcode gives errors the gRPC codes of their kinds, and back: what clients of the CRI see, and what crosses the
// socket between daemon and supervisor.
package errcode

import (
	"context"
	"errors"
	"syscall"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
)

// kinds are the kinds of errors with their codes. The first that matches counts, so what blames the request comes first
// and what only says that something was not reached comes last.
var kinds = []struct {
	kind error
	code codes.Code
}{
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrUnauthenticated, codes.Unauthenticated},
	{errdefs.ErrNotImplemented, codes.Unimplemented},
	{errdefs.ErrOutOfRange, codes.OutOfRange},
	{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	{syscall.ENOSPC, codes.ResourceExhausted},
	{syscall.EDQUOT, codes.ResourceExhausted},
	{errdefs.ErrDataLoss, codes.DataLoss},
	{errdefs.ErrAborted, codes.Aborted},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{errdefs.ErrInternal, codes.Internal},
}

// Of returns the code of an error, Unknown if it has no kind.
func Of(err error) codes.Code {
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return k.code
		}
	}
	return codes.Unknown
}

// Kind returns the kind that a code stands for.
func Kind(code codes.Code) error {
	for _, k := range kinds {
		if k.code == code {
			return k.kind
		}
	}
	return errdefs.ErrUnknown
}
