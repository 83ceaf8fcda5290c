package wire

import (
	"google.golang.org/grpc/status"

	"github.com/berth-runtime/berth/internal/errcode"
	"github.com/berth-runtime/berth/internal/text"
)

// maxText bounds the text of an error, in bytes.
const maxText = 64 << 10

// Encode turns an error into one that ttrpc carries with its kind.
func Encode(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(errcode.Of(err), text.Cut(err.Error(), maxText))
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
	return &Error{kind: errcode.Kind(st.Code()), text: st.Message()}
}
