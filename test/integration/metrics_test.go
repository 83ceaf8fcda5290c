package integration

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// limited is the container that critest looks at the metrics of.
func limited(c *runtimeapi.ContainerConfig) {
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 1024, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
	}
}

// TestMetricsAreComplete mirrors what critest's main branch asserts, without the names that it tolerates to be missing:
// every descriptor of the 56 that this host can give has a help text and labels, and for a container with limits a sample
// with a value for each label. The stream says the same as the list.
func TestMetricsAreComplete(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		pod := n.RunPod()
		c := pod.Start([]string{"sleep", "1000"}, limited)
		c.Output("sh", "-c", "mkdir -p /var/lib/test && for i in 1 2 3 4; do echo hi >> /var/lib/test/$i; done; sync")

		descriptors := describe(t, n)
		for _, name := range metricNames() {
			if _, ok := descriptors["container_"+name]; !ok {
				t.Errorf("container_%s is not described", name)
			}
		}
		m := metricsOf(t, n, pod.ID)
		if len(m.GetContainerMetrics()) != 1 || m.GetContainerMetrics()[0].GetContainerId() != c.ID {
			t.Fatalf("metrics are of %d containers, want that of %s", len(m.GetContainerMetrics()), c.ID)
		}
		samples := slices.Concat(m.GetMetrics(), m.GetContainerMetrics()[0].GetMetrics())
		for name, d := range descriptors {
			found := slices.ContainsFunc(samples, func(s *runtimeapi.Metric) bool { return s.GetName() == name })
			if !found {
				t.Errorf("%s is described and has no sample", name)
			}
			if d.GetHelp() == "" || len(d.GetLabelKeys()) == 0 {
				t.Errorf("%s has help %q and labels %q", name, d.GetHelp(), d.GetLabelKeys())
			}
		}
		for _, s := range samples {
			d := descriptors[s.GetName()]
			if d == nil || len(s.GetLabelValues()) != len(d.GetLabelKeys()) || s.GetValue() == nil || s.GetTimestamp() != 0 {
				t.Errorf("sample %v of descriptor %v", s, d)
			}
		}
		labels := labelled(descriptors, m.GetContainerMetrics()[0].GetMetrics(), "container_processes")[0].labels
		for key, want := range map[string]string{
			"name": c.ID, "image": n.Image, "container": c.Config.GetMetadata().GetName(),
			"namespace": "default", "pod": pod.Config.GetMetadata().GetName(),
		} {
			equal(t, "label "+key, labels[key], want)
		}
		if !strings.Contains(labels["id"], c.ID) {
			t.Errorf("label id is %q, want the path of the cgroup", labels["id"])
		}
		equal(t, "pods in the stream", strings.Join(streamedMetrics(t, n), " "), pod.ID)
	})
}

// metricNames are those of the 56 that this host can give.
func metricNames() []string {
	names := strings.Fields(`blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total
		cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors
		fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total
		fs_writes_total last_seen memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file
		memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes network_receive_bytes_total
		network_receive_errors_total network_receive_packets_dropped_total network_receive_packets_total
		network_transmit_bytes_total network_transmit_errors_total network_transmit_packets_dropped_total
		network_transmit_packets_total oom_events_total processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares
		spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads
		threads_max ulimits_soft`)
	if _, err := os.Stat("/sys/fs/cgroup/hugetlb/hugetlb.2MB.usage_in_bytes"); err == nil {
		names = append(names, "hugetlb_usage_bytes", "hugetlb_max_usage_bytes")
	} else if controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil && strings.Contains(string(controllers), "hugetlb") {
		names = append(names, "hugetlb_usage_bytes") // v2 does not keep the highest use
	}
	if pressureFile("/") != "" {
		for _, resource := range []string{"cpu", "memory", "io"} {
			names = append(names, "pressure_"+resource+"_stalled_seconds_total", "pressure_"+resource+"_waiting_seconds_total")
		}
	}
	return names
}

// pressureFile is the directory of a cgroup in the v2 hierarchy, "" if there is none or no pressure is kept.
func pressureFile(path string) string {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		dir := filepath.Join(root, path)
		if _, err := os.ReadFile(filepath.Join(dir, "cpu.pressure")); err == nil {
			return dir
		}
	}
	return ""
}

func describe(t *testing.T, n *harness.Node) map[string]*runtimeapi.MetricDescriptor {
	t.Helper()
	answer, err := n.Runtime.ListMetricDescriptors(n.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatalf("list metric descriptors: %v", err)
	}
	byName := map[string]*runtimeapi.MetricDescriptor{}
	for _, d := range answer.GetDescriptors() {
		if byName[d.GetName()] != nil {
			t.Errorf("%s is described twice", d.GetName())
		}
		byName[d.GetName()] = d
	}
	return byName
}

// metricsOf lists the metrics of one pod.
func metricsOf(t *testing.T, n *harness.Node, podID string) *runtimeapi.PodSandboxMetrics {
	t.Helper()
	answer, err := n.Runtime.ListPodSandboxMetrics(n.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatalf("list metrics: %v", err)
	}
	for _, m := range answer.GetPodMetrics() {
		if m.GetPodSandboxId() == podID {
			return m
		}
	}
	t.Fatalf("there are no metrics of pod %s", podID)
	return nil
}

// streamedMetrics are the pods in the messages of the stream.
func streamedMetrics(t *testing.T, n *harness.Node) []string {
	t.Helper()
	stream, err := n.Runtime.StreamPodSandboxMetrics(n.Context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatalf("stream metrics: %v", err)
	}
	return drain(t, stream.Recv, func(m *runtimeapi.StreamPodSandboxMetricsResponse) (ids []string) {
		for _, p := range m.GetPodSandboxMetrics() {
			ids = append(ids, p.GetPodSandboxId())
		}
		return ids
	})
}

// drain reads a stream to its end, and expects something in each message.
func drain[M any](t *testing.T, next func() (M, error), ids func(M) []string) []string {
	t.Helper()
	var all []string
	for {
		message, err := next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("read stream: %v", err)
		}
		items := ids(message)
		if len(items) == 0 {
			t.Error("a message without an item")
		}
		all = append(all, items...)
	}
}

// sample is one series.
type sample struct {
	labels map[string]string
	value  uint64
}

// labelled are the series of one name.
func labelled(descriptors map[string]*runtimeapi.MetricDescriptor, metrics []*runtimeapi.Metric, name string) []sample {
	var found []sample
	for _, m := range metrics {
		if m.GetName() != name {
			continue
		}
		s := sample{labels: map[string]string{}, value: m.GetValue().GetValue()}
		for i, key := range descriptors[name].GetLabelKeys() {
			s.labels[key] = m.GetLabelValues()[i]
		}
		found = append(found, s)
	}
	return found
}

// TestMetricsSayWhatTheKernelSays compares the values of every kind with the files of the kernel. Both are read again
// until the kernel has said the same before and after.
func TestMetricsSayWhatTheKernelSays(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		pod := n.RunPod()
		c := pod.Start([]string{"sh", "-c", "nc -l -p 8080 & exec sleep 1000"}, limited)
		c.Output("sh", "-c", "dd if=/dev/zero of=/file bs=64k count=16 conv=fsync")
		hungry := pod.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
		})
		if answer := hungry.Exec("sh", "-c", "head -c 48m /dev/zero | tail"); answer.GetExitCode() == 0 {
			t.Error("more memory than the limit was given")
		}
		descriptors := describe(t, n)
		n.Eventually("the metrics say what the kernel says", func() error {
			before := kernelSays(t, c)
			m := metricsOf(t, n, pod.ID)
			after := kernelSays(t, c)
			got := map[string]uint64{}
			for name := range after {
				base, extra, _ := strings.Cut(name, " ")
				metrics := containerMetrics(t, m, c.ID)
				if strings.HasPrefix(base, "network") {
					metrics = m.GetMetrics()
				}
				for _, s := range labelled(descriptors, metrics, "container_"+base) {
					if extra == "" || slices.Contains(slices.Collect(maps.Values(s.labels)), extra) {
						got[name] = s.value
					}
				}
			}
			for name, want := range after {
				if before[name] == want && got[name] != want {
					return fmt.Errorf("container_%s is %d, want %d", name, got[name], want)
				}
				if before[name] != want {
					return fmt.Errorf("the kernel says %d, then %d for %s", before[name], want, name)
				}
			}
			return nil
		})
		m := metricsOf(t, n, pod.ID)
		own, other := containerMetrics(t, m, c.ID), containerMetrics(t, m, hungry.ID)
		kills := keyed(t, hungry, "memory", "memory.oom_control", "memory.events", "oom_kill")
		equal(t, "OOM kills", labelled(descriptors, other, "container_oom_events_total")[0].value, kills)
		for _, tc := range []struct {
			of    []*runtimeapi.Metric
			name  string
			least uint64
		}{
			{own, "container_fs_usage_bytes", 1 << 20},
			{own, "container_sockets", 1},
			{own, "container_processes", 2},
			{other, "container_oom_events_total", 1},
			{other, "container_memory_max_usage_bytes", 30 << 20},
		} {
			if got := labelled(descriptors, tc.of, tc.name)[0].value; got < tc.least {
				t.Errorf("%s is %d, want at least %d", tc.name, got, tc.least)
			}
		}
	})
}

func containerMetrics(t *testing.T, m *runtimeapi.PodSandboxMetrics, id string) []*runtimeapi.Metric {
	t.Helper()
	for _, c := range m.GetContainerMetrics() {
		if c.GetContainerId() == id {
			return c.GetMetrics()
		}
	}
	t.Fatalf("there are no metrics of container %s", id)
	return nil
}
