package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// LogTotals are counters over the logs of all containers since the start of the supervisor.
type LogTotals struct {
	// Written and Dropped are bytes of log, and bytes of output that could not be logged.
	Written, Dropped uint64
	// Throttled is how long output has waited for the limit of its container.
	Throttled time.Duration
}

// logCollector exports the supervisor's counters of log output.
type logCollector struct {
	read                        func() (LogTotals, error)
	written, dropped, throttled *prometheus.Desc
}

// Logs exports what read returns at every scrape. An error fails the scrape of these metrics only.
func (m *Metrics) Logs(read func() (LogTotals, error)) {
	name := func(what string) string { return prometheus.BuildFQName(namespace, "container_log", what) }
	m.registry.MustRegister(&logCollector{
		read: read,
		written: prometheus.NewDesc(name("written_bytes_total"),
			"Bytes written to container logs since the start of the supervisor, time stamps included.", nil, nil),
		dropped: prometheus.NewDesc(name("dropped_bytes_total"),
			"Bytes of container output that could not be logged.", nil, nil),
		throttled: prometheus.NewDesc(name("throttled_seconds_total"),
			"How long output has waited for log.container_bytes_per_second, over all containers.", nil, nil),
	})
}

// Describe sends the descriptors of the counters.
func (l *logCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- l.written
	descs <- l.dropped
	descs <- l.throttled
}

// Collect reads the counters.
func (l *logCollector) Collect(metrics chan<- prometheus.Metric) {
	t, err := l.read()
	if err != nil {
		return // the supervisor does not answer; the series have a gap
	}
	metrics <- prometheus.MustNewConstMetric(l.written, prometheus.CounterValue, float64(t.Written))
	metrics <- prometheus.MustNewConstMetric(l.dropped, prometheus.CounterValue, float64(t.Dropped))
	metrics <- prometheus.MustNewConstMetric(l.throttled, prometheus.CounterValue, t.Throttled.Seconds())
}
