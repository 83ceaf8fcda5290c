package metric

import (
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/stats"
)

// everything is a host that keeps every figure.
var everything = stats.Abilities{
	CPU: true, Memory: true, IO: true, PIDs: true, MemoryPeak: true, Swap: true, Hugetlb: true, HugetlbPeak: true, Pressure: true,
}

// expected are the names that critest looks for (cri-tools, pkg/validate/pod.go).
const expected = `blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes
fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes
last_seen memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss
memory_swap memory_usage_bytes memory_working_set_bytes network_receive_bytes_total network_receive_errors_total
network_receive_packets_dropped_total network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total pressure_cpu_stalled_seconds_total
pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total
pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total processes sockets spec_cpu_period spec_cpu_quota
spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads
threads_max ulimits_soft`

// full is a reading in which everything was read.
func fullReading() *Reading {
	size := uint64(77)
	return &Reading{
		Labels: Labels{ID: "/a/b", Name: "b", Image: "busybox", Namespace: "ns", Pod: "p", Container: "c"},
		Now:    time.Unix(2000, 0), Started: time.Unix(1000, 0),
		Usage: &stats.Container{
			CPU: stats.CPU{
				UsageNanos: 3_999_999_999, UserNanos: 2e9, SystemNanos: 1e9, Periods: 10, Throttled: 5, ThrottledNanos: 7e9,
				Quota: 20000, Period: 100000, Shares: 1024, Pressure: &stats.PSI{Some: stats.Pressure{TotalNanos: 4e9}},
			},
			Memory: stats.Memory{PageFaults: 9, MajorPageFaults: 3, OwnPageFaults: 8, OwnMajorPageFaults: 2, Pressure: &stats.PSI{}},
			IO:     []stats.IODevice{{Major: 8, Minor: 16, ReadBytes: 1, WriteBytes: 2, ReadOps: 3, WriteOps: 4, DiscardBytes: 5}},
			Pids:   stats.Pids{Tasks: 4, Processes: 2, Limit: 100}, IOPressure: &stats.PSI{},
			Hugetlb: []stats.Hugetlb{{PageSize: "2MB", Usage: 1, Peak: 2}},
		},
		Limits: &stats.MemoryLimits{Limit: 64, Swap: 128}, Processes: &stats.Processes{Descriptors: 6, Sockets: 1}, OpenFiles: 1024,
		Filesystem: &stats.Filesystem{Device: "/dev/sdb1", Disk: stats.Device{Name: "/dev/sdb", Major: 8, Minor: 16}, Bytes: 100, Inodes: 10, InodesFree: 9},
		LayerBytes: &size,
		Interfaces: []stats.Interface{{Name: "eth0", Received: stats.Traffic{Bytes: 1}}, {Name: "net1"}},
	}
}

// TestNames: the catalog of a host that gives everything is what critest
// expects and no more, and kubelet can use each entry.
func TestNames(t *testing.T) {
	var got []string
	for _, d := range New(everything).Descriptors() {
		got = append(got, strings.TrimPrefix(d.Name, "container_"))
		if d.Help == "" || len(d.LabelKeys) < len(baseKeys) {
			t.Errorf("%s has help %q and labels %q", d.Name, d.Help, d.LabelKeys)
		}
		if keys := slices.Sorted(slices.Values(d.LabelKeys)); len(slices.Compact(keys)) != len(d.LabelKeys) {
			t.Errorf("%s has a label twice: %q", d.Name, d.LabelKeys)
		}
	}
	slices.Sort(got)
	want := strings.Fields(expected)
	if len(want) != 56 || !slices.Equal(got, want) {
		t.Errorf("names are\n%q\nwant\n%q", got, want)
	}
}

// TestEveryDescriptorHasSamples: what is described is sent, with a value for
// each label, and no series twice: one that is makes a scrape fail whole.
func TestEveryDescriptorHasSamples(t *testing.T) {
	for name, a := range map[string]stats.Abilities{"everything": everything, "nothing": {}} {
		t.Run(name, func(t *testing.T) {
			catalog := New(a)
			samples := append(catalog.Container(fullReading()), catalog.Pod(fullReading())...)
			seen := map[string]bool{}
			for _, d := range catalog.Descriptors() {
				found := 0
				for _, m := range samples {
					if m.Name != d.Name {
						continue
					}
					found++
					if len(m.LabelValues) != len(d.LabelKeys) || m.Value == nil || m.Timestamp != 0 {
						t.Errorf("%s: %d values for %d labels, value %v, timestamp %d", m.Name, len(m.LabelValues), len(d.LabelKeys), m.Value, m.Timestamp)
					}
				}
				if found == 0 {
					t.Errorf("%s has no sample", d.Name)
				}
			}
			for _, m := range catalog.Container(fullReading()) {
				key := m.Name + strings.Join(m.LabelValues, "\x00")
				if seen[key] {
					t.Errorf("series %s%q is there twice", m.Name, m.LabelValues)
				}
				seen[key] = true
			}
		})
	}
}

// TestValues looks at what has more to it than a copy.
func TestValues(t *testing.T) {
	catalog := New(everything)
	r := fullReading()
	for _, tc := range []struct {
		name  string
		value uint64
		extra []string
		kind  runtimeapi.MetricType
	}{
		{"container_cpu_usage_seconds_total", 3, []string{"total"}, runtimeapi.MetricType_COUNTER},
		{"container_pressure_cpu_waiting_seconds_total", 4, nil, runtimeapi.MetricType_COUNTER},
		{"container_pressure_cpu_stalled_seconds_total", 0, nil, runtimeapi.MetricType_COUNTER},
		{"container_memory_failures_total", 8, []string{"pgfault", "container"}, runtimeapi.MetricType_COUNTER},
		{"container_memory_failures_total", 3, []string{"pgmajfault", "hierarchy"}, runtimeapi.MetricType_COUNTER},
		{"container_fs_usage_bytes", 77, []string{"/dev/sdb1"}, runtimeapi.MetricType_GAUGE},
		{"container_fs_writes_bytes_total", 2, []string{"/dev/sdb"}, runtimeapi.MetricType_COUNTER},
		{"container_blkio_device_usage_total", 5, []string{"/dev/sdb", "8", "16", "Discard"}, runtimeapi.MetricType_COUNTER},
		{"container_hugetlb_usage_bytes", 1, []string{"2MB"}, runtimeapi.MetricType_GAUGE},
		{"container_ulimits_soft", 1024, []string{"max_open_files"}, runtimeapi.MetricType_GAUGE},
		{"container_start_time_seconds", 1000, nil, runtimeapi.MetricType_GAUGE},
		{"container_last_seen", 2000, nil, runtimeapi.MetricType_GAUGE},
	} {
		want := append(r.Labels.values(), tc.extra...)
		found := slices.ContainsFunc(catalog.Container(fullReading()), func(m *runtimeapi.Metric) bool {
			return m.Name == tc.name && slices.Equal(m.LabelValues, want) && m.Value.Value == tc.value && m.MetricType == tc.kind
		})
		if !found {
			t.Errorf("there is no %s%q of %d", tc.name, want, tc.value)
		}
	}
}

// TestAbsent: what was not read gives no sample, not a zero.
func TestAbsent(t *testing.T) {
	r := &Reading{Usage: &stats.Container{}, Processes: &stats.Processes{Hidden: true}, Filesystem: &stats.Filesystem{Device: "d"}}
	got := map[string]bool{}
	for _, m := range New(everything).Container(r) {
		got[strings.TrimPrefix(m.Name, "container_")] = true
	}
	for _, name := range []string{
		"sockets", "file_descriptors", "ulimits_soft", "fs_usage_bytes", "pressure_io_stalled_seconds_total", "spec_memory_limit_bytes",
		"cpu_cfs_periods_total", "spec_cpu_quota", "hugetlb_usage_bytes", "network_receive_bytes_total", "start_time_seconds",
	} {
		if got[name] {
			t.Errorf("there is a sample of %s", name)
		}
	}
	if !got["processes"] || !got["fs_inodes_total"] || !got["fs_reads_total"] {
		t.Errorf("samples are of %v, want those of what was read too", got)
	}
	if samples := New(everything).Container(&Reading{}); len(samples) != 1 {
		t.Errorf("an empty reading gives %v, want when it was taken", samples)
	}
}
