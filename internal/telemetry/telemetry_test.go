package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestLoggerHonoursLevelAndFormat(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLogger(&out, "warn", "json")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("too quiet")
	log.Warn("heard", "pod", "default/web")
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("want exactly one JSON line, got %q: %v", out.String(), err)
	}
	if line["msg"] != "heard" || line["pod"] != "default/web" {
		t.Errorf("line = %v", line)
	}
}

// A request of any length must not flood the log, be it a text or an error.
func TestLongTextsAreCut(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLogger(&out, "info", "text")
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 1<<20)
	log.With("pod", long).Info("oh", "error", errors.New(long), "number", 7)
	if n := out.Len(); n > 3*maxValue || !strings.Contains(out.String(), "number=7") {
		t.Errorf("the line has %d bytes", n)
	}
}

// What libraries call errors does not alarm anybody.
func TestLibrariesLogForDebuggingOnly(t *testing.T) {
	for level, want := range map[string]string{"info": "", "debug": "level=DEBUG msg=oh part=lib g.k=v"} {
		var out bytes.Buffer
		log, err := NewLogger(&out, level, "text")
		if err != nil {
			t.Fatal(err)
		}
		ForLibraries(log).With("part", "lib").WithGroup("g").Error("oh", "k", "v")
		if got := out.String(); got != "" && want == "" || !strings.Contains(got, want) {
			t.Errorf("at level %s: %q, want %q", level, got, want)
		}
	}
}

func TestLoggerRefusesUnknownSettings(t *testing.T) {
	for _, c := range []struct{ level, format, names string }{
		{"loud", "text", `"loud"`},
		{"info", "xml", `"xml"`},
	} {
		_, err := NewLogger(io.Discard, c.level, c.format)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), c.names) {
			t.Errorf("NewLogger(%q, %q) = %v, want an invalid argument that names %s", c.level, c.format, err, c.names)
		}
	}
}

// A scrape over a real socket shows calls, sessions and gauges, and Serve ends
// with its context.
func TestMetricsAreScraped(t *testing.T) {
	m := NewMetrics("1.2.3")
	m.Call("ListContainers")("OK")
	running := m.Call("PullImage")
	defer running("OK")
	m.Panicked("Status")
	endSession := m.Session("exec")
	plugins := m.Plugins()
	plugins.PluginTook("10-a", "CreateContainer", time.Second)
	plugins.PluginAnswered("10-a", "CreateContainer", false)
	m.Gauge("pods", "Pods known.", map[string]string{"state": "ready"}, func() float64 { return 7 })

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- m.Serve(ctx, l, slog.New(slog.DiscardHandler)) }()

	body := scrape(t, l.Addr().String())
	for _, want := range []string{
		`berth_rpc_duration_seconds_count{code="OK",method="ListContainers"} 1`,
		`berth_rpc_in_flight{method="PullImage"} 1`,
		`berth_rpc_in_flight{method="ListContainers"} 0`,
		`berth_rpc_panics_total{method="Status"} 1`,
		`berth_stream_sessions{kind="exec"} 1`,
		`berth_pods{state="ready"} 7`,
		`berth_nri_plugin_seconds_sum{event="CreateContainer",plugin="10-a"} 1`,
		`berth_nri_plugin_events_total{event="CreateContainer",ok="false",plugin="10-a"} 1`,
		`berth_build_info{version="1.2.3"} 1`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("scrape lacks %s", want)
		}
	}
	endSession()
	if body := scrape(t, l.Addr().String()); !strings.Contains(body, `berth_stream_sessions{kind="exec"} 0`) {
		t.Error("an ended session is still counted")
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve = %v after its context ended, want nil", err)
	}
}

func scrape(t *testing.T, addr string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
