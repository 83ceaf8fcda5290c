package nri

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	nrilog "github.com/containerd/nri/pkg/log"
)

// library takes the log lines of the NRI library, which has one logger for the
// whole process. They go to the manager that was made last.
var library = func() *relay {
	r := &relay{}
	nrilog.Set(r)
	return r
}()

// relay hands log lines on.
type relay struct {
	to atomic.Pointer[slog.Logger]
}

func (r *relay) set(log *slog.Logger) { r.to.Store(log) }

func (r *relay) line(ctx context.Context, level slog.Level, format string, args []any) {
	if log := r.to.Load(); log != nil && log.Enabled(ctx, level) {
		log.Log(ctx, level, fmt.Sprintf(format, args...))
	}
}

// Debugf implements the library's logger.
func (r *relay) Debugf(ctx context.Context, format string, args ...any) {
	r.line(ctx, slog.LevelDebug, format, args)
}

// Infof implements the library's logger, which takes details for news.
func (r *relay) Infof(ctx context.Context, format string, args ...any) {
	r.line(ctx, slog.LevelDebug, format, args)
}

// Warnf implements the library's logger.
func (r *relay) Warnf(ctx context.Context, format string, args ...any) {
	r.line(ctx, slog.LevelWarn, format, args)
}

// Errorf implements the library's logger.
func (r *relay) Errorf(ctx context.Context, format string, args ...any) {
	r.line(ctx, slog.LevelError, format, args)
}

// figures takes what the library counts.
type figures struct{ m *Manager }

var _ adaptation.Metrics = figures{}

// RecordPluginInvocation says no more than RecordPluginLatency, which knows
// how long it took but not how it ended: the failures are counted here.
func (f figures) RecordPluginInvocation(plugin, event string, err error) {
	if err != nil {
		f.m.opts.Log.Warn("plugin failed", "plugin", plugin, "event", event, "error", err)
	}
	if f.m.opts.Meter != nil {
		f.m.opts.Meter.PluginAnswered(plugin, event, err == nil)
	}
}

// RecordPluginLatency implements adaptation.Metrics.
func (f figures) RecordPluginLatency(plugin, event string, took time.Duration) {
	if f.m.opts.Meter != nil {
		f.m.opts.Meter.PluginTook(plugin, event, took)
	}
}

// RecordPluginAdjustments implements adaptation.Metrics; how much a plugin
// changes is not counted.
func (figures) RecordPluginAdjustments(string, string, *adaptation.ContainerAdjustment, int, int) {}

// UpdatePluginCount notes the size of the audience. The library calls it
// before a plugin that was synchronised can miss an event.
func (f figures) UpdatePluginCount(count int) { f.m.plugins.Store(int64(count)) }
