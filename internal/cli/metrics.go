package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metricItem is one series of a pod or container as JSON and YAML show it. The
// names are stable.
type metricItem struct {
	Name      string            `json:"name"`
	Help      string            `json:"help"`
	Kind      string            `json:"kind"`
	Pod       podReference      `json:"pod"`
	Container string            `json:"container"`
	ID        string            `json:"containerId"`
	Labels    map[string]string `json:"labels"`
	Value     uint64            `json:"value"`
}

// metricBase is what names of metrics begin with; tables leave it out.
const metricBase = "container_"

// commonLabels are those which tables have columns for, or need not repeat.
var commonLabels = []string{"id", "name", "image", "namespace", "pod", "container"}

// metrics asks for all metrics of the node.
func (n *node) metrics(ctx context.Context) ([]metricItem, error) {
	ctx, cancel := n.ask(ctx)
	defer cancel()
	described, err := n.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*runtimeapi.MetricDescriptor, len(described.Descriptors))
	for _, d := range described.Descriptors {
		byName[d.Name] = d
	}
	listed, err := n.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		return nil, err
	}
	items := []metricItem{}
	for _, pod := range listed.PodMetrics {
		for _, m := range pod.Metrics {
			items = append(items, newMetricItem(byName[m.Name], m, pod.PodSandboxId, ""))
		}
		for _, ctr := range pod.ContainerMetrics {
			for _, m := range ctr.Metrics {
				items = append(items, newMetricItem(byName[m.Name], m, pod.PodSandboxId, ctr.ContainerId))
			}
		}
	}
	return items, nil
}

func newMetricItem(d *runtimeapi.MetricDescriptor, m *runtimeapi.Metric, pod, container string) metricItem {
	item := metricItem{
		Name: m.Name, Help: d.GetHelp(), Kind: strings.ToLower(m.MetricType.String()), Pod: podReference{ID: pod}, ID: container,
		Labels: map[string]string{}, Value: m.Value.GetValue(),
	}
	for i, key := range d.GetLabelKeys() {
		if i < len(m.LabelValues) {
			item.Labels[key] = m.LabelValues[i]
		}
	}
	return item
}

// own are the labels that only some metrics have, as a table shows them.
func (m *metricItem) own() string {
	var own []string
	for key, value := range m.Labels {
		if !slices.Contains(commonLabels, key) {
			own = append(own, key+"="+value)
		}
	}
	slices.Sort(own)
	return strings.Join(own, " ")
}

// text is the value as people read it: sizes and moments by their names.
func (m *metricItem) text(now time.Time) string {
	switch {
	case strings.HasSuffix(m.Name, "_start_time_seconds"), strings.HasSuffix(m.Name, "_last_seen"):
		at := time.Unix(int64(m.Value), 0)
		a := &app{now: func() time.Time { return now }}
		return a.age(&at) + " ago"
	case strings.HasSuffix(m.Name, "_seconds_total"):
		return (time.Duration(m.Value) * time.Second).String()
	case strings.Contains(m.Name, "_memory_") && !strings.HasSuffix(m.Name, "cnt") && !strings.HasSuffix(m.Name, "_failures_total"),
		strings.HasSuffix(m.Name, "_bytes"), strings.HasSuffix(m.Name, "_bytes_total"), strings.Contains(m.Name, "_blkio_"):
		return size(m.Value)
	}
	return strconv.FormatUint(m.Value, 10)
}

// listMetrics shows the metrics of pods: of those that are named, or of all
// which the flags select.
func (a *app) listMetrics(ctx context.Context, n *node, f listFlags, words []string) error {
	if f.quiet {
		return &codeError{code: exitUsage, err: errors.New("--quiet and --metrics exclude each other")}
	}
	items, err := n.metrics(ctx)
	if status.Code(err) == codes.Unimplemented {
		return &hintedError{err: errors.New("list metrics: not supported by this runtime"), next: "Show resource usage with: berth stats"}
	}
	if err != nil {
		return fmt.Errorf("list metrics: %w", err)
	}
	all, err := n.inventory(ctx)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	shown, err := f.selectPods(all, words)
	if err != nil {
		return err
	}
	kept := items[:0]
	for _, m := range items {
		pod := shown[m.Pod.ID]
		if pod == nil {
			continue
		}
		m.Pod.Name, m.Pod.Namespace, m.Pod.UID = pod.Metadata.GetName(), pod.Metadata.GetNamespace(), pod.Metadata.GetUid()
		m.Container = m.Labels["container"]
		kept = append(kept, m)
	}
	return a.show(kept, func() *table {
		t := &table{head: []string{"POD", "CONTAINER", "METRIC", "OF", "VALUE"}}
		for _, m := range kept {
			t.add(m.Pod.Namespace+"/"+m.Pod.Name, orDash(m.Container), strings.TrimPrefix(m.Name, metricBase), orDash(m.own()), m.text(a.now()))
		}
		return t
	})
}

// selectPods finds the pods that are named, or else those which the flags ask
// for.
func (f *listFlags) selectPods(all *inventory, words []string) (map[string]*runtimeapi.PodSandbox, error) {
	found := map[string]*runtimeapi.PodSandbox{}
	for _, word := range words {
		pod, err := all.findPod(word)
		if err != nil {
			return nil, err
		}
		found[pod.Id] = pod
	}
	if len(words) > 0 {
		return found, nil
	}
	for _, pod := range all.pods {
		if f.match(pod.Labels, pod.Metadata.GetNamespace()) {
			found[pod.Id] = pod
		}
	}
	return found, nil
}
