package cri

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/leakcheck"
)

// The metrics of many pods come in several messages, each pod exactly once.
func TestStreamPodSandboxMetricsSendsEachOnce(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	s, err := e.runtime.StreamPodSandboxMetrics(t.Context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if messages := receive(t, s.Recv); len(messages) != 0 {
		t.Errorf("%d messages for nothing", len(messages))
	}
	for i := range 24 {
		e.engine.metrics = append(e.engine.metrics, &runtimeapi.PodSandboxMetrics{
			PodSandboxId: fmt.Sprintf("pod-%02d", i),
			Metrics:      []*runtimeapi.Metric{{Name: "m", LabelValues: []string{strings.Repeat("x", maxBatchBytes/8)}}},
		})
	}
	s, err = e.runtime.StreamPodSandboxMetrics(t.Context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	messages := receive(t, s.Recv)
	var got []string
	for _, m := range messages {
		if len(m.PodSandboxMetrics) == 0 {
			t.Error("a message without an item")
		}
		for _, item := range m.PodSandboxMetrics {
			got = append(got, item.PodSandboxId)
		}
	}
	if len(messages) < 3 || len(got) != 24 || !slices.IsSorted(got) || len(slices.Compact(got)) != 24 {
		t.Errorf("%d messages with %d pods, want each of 24 once in 1 MiB at most a message", len(messages), len(got))
	}
	list, err := e.runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(list.PodMetrics) != 24 {
		t.Errorf("list has %d pods (%v), want 24", len(list.GetPodMetrics()), err)
	}
}

// A reading that fails is an error of the call, never an end of the stream.
func TestStreamPodSandboxMetricsFails(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	e.engine.do = func(context.Context, string) error { return errors.New("no disk") }
	s, err := e.runtime.StreamPodSandboxMetrics(t.Context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unknown || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("stream ends with %v, want an error that says why", err)
	}
}

func TestStreamPodSandboxStats(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	e.engine.stats = []*runtimeapi.PodSandboxStats{{Attributes: &runtimeapi.PodSandboxAttributes{Id: "s1"}}, {Attributes: &runtimeapi.PodSandboxAttributes{Id: "s2"}}}
	filter := &runtimeapi.PodSandboxStatsFilter{Id: "s", LabelSelector: map[string]string{"k": "v"}}
	s, err := e.runtime.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	if got := receive(t, s.Recv); len(got) != 1 || len(got[0].PodSandboxStats) != 2 {
		t.Errorf("streamed %v", got)
	}
	if f := e.engine.filter; f.ID != "s" || f.Labels["k"] != "v" {
		t.Errorf("filter = %+v", f)
	}
}
