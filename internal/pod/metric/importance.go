package metric

import (
	"cmp"
	"maps"
	"slices"
)

// important are the metrics that dashboards, alerts and autoscalers use most, the most important
// first.
var important = []string{
	"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_memory_rss", "container_memory_usage_bytes",
	"container_oom_events_total", "container_start_time_seconds", "container_cpu_cfs_throttled_periods_total", "container_cpu_cfs_periods_total",
	"container_spec_memory_limit_bytes", "container_fs_usage_bytes", "container_network_receive_bytes_total",
	"container_network_transmit_bytes_total", "container_last_seen",
}

// LeastImportant orders metrics by what a reply that is too large leaves out first: the largest of
// those that are not important, then the important ones. Sizes are in bytes, by name.
func LeastImportant(sizes map[string]int) []string {
	rank := map[string]int{}
	for i, name := range important {
		rank[name] = len(important) - i
	}
	return slices.SortedFunc(maps.Keys(sizes), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank[a], rank[b]), cmp.Compare(sizes[b], sizes[a]), cmp.Compare(a, b))
	})
}
