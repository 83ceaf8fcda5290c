package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// namespace begins the name of every metric of the daemon.
	namespace = "berth"
	// scrapeHeaderTimeout bounds how long a scraper may take to send its request.
	scrapeHeaderTimeout = 5 * time.Second
	// scrapeTimeout bounds one whole scrape.
	scrapeTimeout = 10 * time.Second
)

// rpcBuckets span what a call may take: a list answers from memory within a
// millisecond, a pull may take minutes.
var rpcBuckets = []float64{
	.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300,
}

// Metrics are the figures that the daemon exports. Its methods may be called
// from any goroutine.
type Metrics struct {
	registry    *prometheus.Registry
	rpcSeconds  *prometheus.HistogramVec
	rpcInFlight *prometheus.GaugeVec
	panics      *prometheus.CounterVec
	sessions    *prometheus.GaugeVec
	unsupported *prometheus.CounterVec
}

// NewMetrics returns metrics of their own registry, labelled with the version
// of the program.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		rpcSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: "rpc", Name: "duration_seconds",
			Help:    "How long calls took, by method and gRPC code.",
			Buckets: rpcBuckets,
		}, []string{"method", "code"}),
		rpcInFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: "rpc", Name: "in_flight",
			Help: "Calls being answered now, by method.",
		}, []string{"method"}),
		panics: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: "rpc", Name: "panics_total",
			Help: "Calls that ended in a panic, by method; each is a defect.",
		}, []string{"method"}),
		sessions: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: "stream", Name: "sessions",
			Help: "Streaming sessions open now, by kind.",
		}, []string{"kind"}),
		unsupported: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "unsupported_requests_total",
			Help: "Requests that were accepted although a field of them cannot be fully given, by field.",
		}, []string{"field"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info",
		Help:        "Always 1; the label says which version runs.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(m.rpcSeconds, m.rpcInFlight, m.panics, m.sessions, m.unsupported, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Call counts a call of method as in flight and returns what to call with its
// code when it has been answered.
func (m *Metrics) Call(method string) (done func(code string)) {
	begun := time.Now()
	inFlight := m.rpcInFlight.WithLabelValues(method)
	inFlight.Inc()
	return func(code string) {
		inFlight.Dec()
		m.rpcSeconds.WithLabelValues(method, code).Observe(time.Since(begun).Seconds())
	}
}

// Panicked counts a call of method that ended in a panic.
func (m *Metrics) Panicked(method string) {
	m.panics.WithLabelValues(method).Inc()
}

// Unsupported counts a request that was accepted although a field of it cannot be fully given.
// Fields are names of the program, without what a request chooses.
func (m *Metrics) Unsupported(field string) { m.unsupported.WithLabelValues(field).Inc() }

// Session counts a streaming session of kind as open and returns what to call
// when it has ended.
func (m *Metrics) Session(kind string) (done func()) {
	open := m.sessions.WithLabelValues(kind)
	open.Inc()
	return open.Dec
}

// Gauge exports what read answers at every scrape as berth_NAME. It panics if
// the name is taken or malformed: names are constants of the program.
func (m *Metrics) Gauge(name, help string, labels map[string]string, read func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: namespace, Name: name, Help: help, ConstLabels: labels,
	}, read))
}

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Timeout: scrapeTimeout})
}

// Serve answers scrapes of /metrics on l until ctx ends. It closes l.
func (m *Metrics) Serve(ctx context.Context, l net.Listener, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: scrapeHeaderTimeout,
		IdleTimeout:       time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() {
		if err := server.Close(); err != nil {
			log.Debug("close the metrics server", "error", err)
		}
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	}
	return nil
}
