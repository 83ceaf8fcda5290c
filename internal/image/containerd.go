package image

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"

	//nolint:depguard // containerd's libraries log through logrus; this file is the bridge from there to slog.
	"github.com/sirupsen/logrus"
)

// namespace separates our entries in containerd's databases from anybody
// else's. There is no other client.
const namespace = "berth"

// snapshotterName is the key under which containerd's metadata knows the
// overlay snapshotter. The unpacker compares it.
const snapshotterName = "overlayfs"

func inNamespace(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// quietGlobalLog keeps the libraries from printing on their own what they do
// not log through a context: that a file system has no fsverity, for example.
var quietGlobalLog = sync.OnceValue(func() error { return log.SetLevel("error") })

// withLog sends the warnings of containerd's libraries to our log.
func withLog(ctx context.Context, to *slog.Logger) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(logBridge{to})
	return log.WithLogger(ctx, logrus.NewEntry(logger))
}

type logBridge struct{ to *slog.Logger }

// Levels returns what is worth forwarding; the libraries chat at info.
func (logBridge) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel, logrus.InfoLevel}
}

// Fire forwards one entry.
func (b logBridge) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch e.Level {
	case logrus.WarnLevel:
		level = slog.LevelWarn
	case logrus.ErrorLevel, logrus.FatalLevel, logrus.PanicLevel:
		level = slog.LevelError
	default:
	}
	attributes := make([]slog.Attr, 0, len(e.Data))
	for key, value := range e.Data {
		attributes = append(attributes, slog.Any(key, value))
	}
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	b.to.LogAttrs(ctx, level, e.Message, attributes...)
	return nil
}
