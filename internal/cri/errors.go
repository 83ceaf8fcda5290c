package cri

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/status"

	"github.com/berth-runtime/berth/internal/errcode"
)

// statusOf gives err the gRPC code of its kind. An error that has a code keeps it.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(errcode.Of(err), oneLine(err))
}

// maxErrorText bounds the text of an error, and errorTail what is kept of its end,
// where the cause is: requests may be of any length, and errors name their values.
const (
	maxErrorText = 8 << 10
	errorTail    = 2 << 10
)

// oneLine is the text of an error; errors that were joined have a line each.
func oneLine(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if len(text) <= maxErrorText {
		return text
	}
	head, tail := text[:maxErrorText-errorTail], text[len(text)-errorTail:]
	return strings.ToValidUTF8(head, "") + " … " + strings.ToValidUTF8(tail, "")
}

// invalid refuses a field of a request: its name, and what is wrong with it.
func invalid(field, reason string) error {
	return fmt.Errorf("%s: %s: %w", field, reason, errdefs.ErrInvalidArgument)
}
