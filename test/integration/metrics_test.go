package integration

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
		if !strings.HasSuffix(labels["id"], c.ID) {
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
	n := harness.Start(t, harness.Options{})
	pod := n.RunPod()
	c := pod.Start([]string{"sh", "-c", "nc -l -p 8080 & exec sleep 1000"}, limited)
	c.Output("sh", "-c", "dd if=/dev/zero of=/file bs=64k count=16 conv=fsync")
	if answer := c.Exec("sh", "-c", "head -c 200m /dev/zero | tail"); answer.GetExitCode() == 0 {
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
			metrics := m.GetContainerMetrics()[0].GetMetrics()
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
	m := metricsOf(t, n, pod.ID).GetContainerMetrics()[0].GetMetrics()
	for _, tc := range []struct {
		name  string
		least uint64
	}{
		{"container_fs_usage_bytes", 1 << 20},
		{"container_oom_events_total", 1},
		{"container_sockets", 1},
		{"container_processes", 2},
		{"container_memory_max_usage_bytes", 60 << 20},
	} {
		if got := labelled(descriptors, m, tc.name)[0].value; got < tc.least {
			t.Errorf("%s is %d, want at least %d", tc.name, got, tc.least)
		}
	}
}

// kernelSays reads what metrics must say of a container, by the name of the metric and a label that it must have.
func kernelSays(t *testing.T, c *harness.Container) map[string]uint64 {
	t.Helper()
	says := map[string]uint64{
		"start_time_seconds":                  uint64(c.Status().GetStartedAt() / 1e9),
		"cpu_cfs_periods_total":               keyed(t, c, "cpu", "cpu.stat", "cpu.stat", "nr_periods"),
		"memory_usage_bytes":                  number(t, c, "memory", "memory.usage_in_bytes", "memory.current"),
		"memory_max_usage_bytes":              number(t, c, "memory", "memory.max_usage_in_bytes", "memory.peak"),
		"memory_failcnt":                      keyedOrNumber(t, c, "memory.failcnt", "memory.events", "max"),
		"memory_rss":                          keyed(t, c, "memory", "memory.stat", "memory.stat", "total_rss", "anon"),
		"memory_cache":                        keyed(t, c, "memory", "memory.stat", "memory.stat", "total_cache", "file"),
		"memory_mapped_file":                  keyed(t, c, "memory", "memory.stat", "memory.stat", "total_mapped_file", "file_mapped"),
		"memory_swap":                         0,
		"oom_events_total":                    keyed(t, c, "memory", "memory.oom_control", "memory.events", "oom_kill"),
		"threads":                             number(t, c, "pids", "pids.current", "pids.current"),
		"spec_cpu_quota":                      20000,
		"spec_cpu_period":                     100000,
		"spec_memory_limit_bytes":             64 << 20,
		"threads_max":                         0,
		"network_receive_bytes_total eth0":    0,
		"network_receive_packets_total eth0":  0,
		"network_transmit_bytes_total eth0":   0,
		"network_transmit_packets_total eth0": 0,
	}
	processesSay(t, c, says)
	dev, err := os.ReadFile("/proc/" + containerPID(t, c) + "/net/dev") // of the network namespace of the process
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(dev)) {
		if f := strings.Fields(strings.Replace(line, ":", " ", 1)); len(f) > 10 && f[0] == "eth0" {
			says["network_receive_bytes_total eth0"], says["network_receive_packets_total eth0"] = parse(t, f[1]), parse(t, f[2])
			says["network_transmit_bytes_total eth0"], says["network_transmit_packets_total eth0"] = parse(t, f[9]), parse(t, f[10])
		}
	}
	return says
}

// processesSay goes through the processes of a container as anybody can.
func processesSay(t *testing.T, c *harness.Container, says map[string]uint64) {
	t.Helper()
	for _, name := range []string{"processes", "file_descriptors", "sockets"} {
		says[name] = 0
	}
	for line := range strings.Lines(controlFile(t, c, "pids", "cgroup.procs", "cgroup.procs")) {
		pid := strings.TrimSpace(line)
		links, err := filepath.Glob("/proc/" + pid + "/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		says["processes"]++
		says["file_descriptors"] += uint64(len(links))
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, "socket:") {
				says["sockets"]++
			}
		}
	}
	text, err := os.ReadFile("/proc/" + containerPID(t, c) + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "Max open files")
	says["ulimits_soft max_open_files"] = parse(t, strings.Fields(after)[0])
}

// controlFile reads a file of the cgroup of a container. With the cgroup of v1 beside v2, v1 is looked at.
func controlFile(t *testing.T, c *harness.Container, controller, v1, v2 string) string {
	t.Helper()
	lines, err := os.ReadFile("/proc/" + containerPID(t, c) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(lines)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		f[2] = cgroupOf(c, f[2])
		file := filepath.Join("/sys/fs/cgroup", controller, f[2], v1)
		if f[1] == "" {
			file = filepath.Join("/sys/fs/cgroup", f[2], v2)
		} else if !slices.Contains(strings.Split(f[1], ","), controller) {
			continue
		}
		if text, err := os.ReadFile(file); err == nil {
			return string(text)
		}
	}
	t.Fatalf("find %s or %s in\n%s", v1, v2, lines)
	return ""
}

// cgroupOf returns the cgroup of the container that is part of a path: with systemd, crun puts processes into another one
// beneath it.
func cgroupOf(c *harness.Container, path string) string {
	for dir := path; strings.Contains(dir, c.ID); dir = filepath.Dir(dir) {
		path = dir
	}
	return path
}

func number(t *testing.T, c *harness.Container, controller, v1, v2 string) uint64 {
	t.Helper()
	return parse(t, strings.TrimSpace(controlFile(t, c, controller, v1, v2)))
}

// keyed reads the first of the keys that is in a file.
func keyed(t *testing.T, c *harness.Container, controller, v1, v2 string, keys ...string) uint64 {
	t.Helper()
	text := controlFile(t, c, controller, v1, v2)
	for _, key := range keys {
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == key {
				return parse(t, f[1])
			}
		}
	}
	t.Fatalf("find %q in\n%s", keys, text)
	return 0
}

// keyedOrNumber reads a file of the memory controller which is one number on v1 and one of several on v2.
func keyedOrNumber(t *testing.T, c *harness.Container, v1, v2, key string) uint64 {
	t.Helper()
	if text := strings.TrimSpace(controlFile(t, c, "memory", v1, v2)); !strings.Contains(text, " ") {
		return parse(t, text)
	}
	return keyed(t, c, "memory", v1, v2, key)
}

func parse(t *testing.T, text string) uint64 {
	t.Helper()
	value, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}
