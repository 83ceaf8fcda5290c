package wire

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kinds pairs the error kinds that cross the socket with the codes that ttrpc carries.
var kinds = []struct {
	kind error
	code codes.Code
}{
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrNotImplemented, codes.Unimplemented},
	{errdefs.ErrInternal, codes.Internal},
	{errdefs.ErrAborted, codes.Aborted},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// Encode turns an error into one that ttrpc carries with its kind.
func Encode(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return status.Error(k.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

// Error is an error that was made on the other side of the socket.
type Error struct {
	kind error
	text string
}

// Error returns the text as the other side wrote it.
func (e *Error) Error() string { return e.text }

// Unwrap returns the kind of the error.
func (e *Error) Unwrap() error { return e.kind }

// Decode turns an error of a ttrpc call back into one with its kind.
func Decode(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, k := range kinds {
		if st.Code() == k.code {
			return &Error{kind: k.kind, text: st.Message()}
		}
	}
	return &Error{kind: errdefs.ErrUnknown, text: st.Message()}
}
