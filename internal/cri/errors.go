package cri

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/status"

	"github.com/berth-runtime/berth/internal/errcode"
	"github.com/berth-runtime/berth/internal/text"
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
	line := text.Clean(strings.ReplaceAll(err.Error(), "\n", "; "))
	if len(line) <= maxErrorText {
		return line
	}
	tail := strings.ToValidUTF8(line[len(line)-errorTail:], "") // it may begin within a character
	return text.Head(line, maxErrorText-errorTail) + " " + text.Ellipsis + " " + tail
}

// invalid refuses a field of a request: its name, and what is wrong with it.
func invalid(field, reason string) error {
	return fmt.Errorf("%s: %s: %w", field, reason, errdefs.ErrInvalidArgument)
}
