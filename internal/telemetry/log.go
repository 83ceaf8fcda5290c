// Package telemetry is how the daemon tells what it does: structured log lines
// and Prometheus metrics. It knows none of the parts that report through it.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/containerd/errdefs"
)

// NewLogger returns a logger that writes lines of level and above to w.
// level is debug, info, warn or error; format is text or json.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error: %w", level, errdefs.ErrInvalidArgument)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("log format %q: want text or json: %w", format, errdefs.ErrInvalidArgument)
	}
}
