package telemetry

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// pluginBuckets span what a plugin may take, up to the longest time-out.
var pluginBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

// PluginMetrics are figures about plugins of the Node Resource Interface.
type PluginMetrics struct {
	seconds *prometheus.HistogramVec
	answers *prometheus.CounterVec
}

// Plugins exports figures about plugins. It may be called once.
func (m *Metrics) Plugins() *PluginMetrics {
	p := &PluginMetrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: "nri", Name: "plugin_seconds",
			Help:    "How long plugins took for an event, by plugin and event.",
			Buckets: pluginBuckets,
		}, []string{"plugin", "event"}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: "nri", Name: "plugin_events_total",
			Help: "Events sent to plugins, by plugin, event and whether the plugin answered without an error.",
		}, []string{"plugin", "event", "ok"}),
	}
	m.registry.MustRegister(p.seconds, p.answers)
	return p
}

// PluginTook notes how long a plugin took for an event.
func (p *PluginMetrics) PluginTook(plugin, event string, took time.Duration) {
	p.seconds.WithLabelValues(plugin, event).Observe(took.Seconds())
}

// PluginAnswered counts an event sent to a plugin.
func (p *PluginMetrics) PluginAnswered(plugin, event string, ok bool) {
	p.answers.WithLabelValues(plugin, event, strconv.FormatBool(ok)).Inc()
}
