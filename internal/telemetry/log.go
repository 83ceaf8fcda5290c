// Package telemetry is how the daemon tells what it does: structured log lines
// and Prometheus metrics. It knows none of the parts that report through it.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/text"
)

// NewLogger returns a logger that writes lines of level and above to w.
// level is debug, info, warn or error; format is text or json.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error: %w", level, errdefs.ErrInvalidArgument)
	}
	options := &slog.HandlerOptions{Level: l, ReplaceAttr: bounded}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("log format %q: want text or json: %w", format, errdefs.ErrInvalidArgument)
	}
}

// maxValue bounds what a line says of one thing: errors and requests may be of any length.
const maxValue = 16 << 10

// bounded cuts a text that would flood the log.
func bounded(_ []string, a slog.Attr) slog.Attr {
	var value string
	switch v := a.Value.Any().(type) {
	case string:
		value = v
	case error:
		value = v.Error()
	}
	if len(value) > maxValue {
		a.Value = slog.StringValue(text.Cut(value, maxValue))
	}
	return a
}

// ForLibraries returns a logger for libraries that log by themselves: what
// they call an error is one that their caller gets as well, so all of it is
// written for debugging only.
func ForLibraries(log *slog.Logger) *slog.Logger {
	return slog.New(demoted{log.Handler()})
}

// demoted writes everything at the debug level.
type demoted struct{ to slog.Handler }

// Enabled implements [slog.Handler].
func (d demoted) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.to.Enabled(ctx, slog.LevelDebug)
}

// Handle implements [slog.Handler].
func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return d.to.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler { return demoted{d.to.WithAttrs(attrs)} }

// WithGroup implements [slog.Handler].
func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.to.WithGroup(name)} }
