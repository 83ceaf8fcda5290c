package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kinds are the kinds of errors of the daemon with their codes. The first that
// matches counts, so what blames the request comes first and what only says
// that something was not reached comes last.
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

// statusOf gives err the gRPC code of its kind. An error that has a code keeps it.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	text := oneLine(err)
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return status.Error(k.code, text)
		}
	}
	return status.Error(codes.Unknown, text)
}

// oneLine is the text of an error; errors that were joined have a line each.
func oneLine(err error) string {
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// invalid refuses a field of a request: its name, and what is wrong with it.
func invalid(field, reason string) error {
	return fmt.Errorf("%s: %s: %w", field, reason, errdefs.ErrInvalidArgument)
}
