package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-runtime/berth/test/harness"
)

// kernelSays reads what metrics must say of a container, by the name of the metric and a label that it must have.
func kernelSays(t *testing.T, c *harness.Container) map[string]uint64 {
	t.Helper()
	says := map[string]uint64{
		"start_time_seconds":                  uint64(c.Status().GetStartedAt() / 1e9),
		"cpu_cfs_periods_total":               keyedIn(t, limitFile(t, c, "cpu", "cpu.stat", "cpu.stat"), "nr_periods"),
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
		"network_receive_bytes_total eth0":    0,
		"network_receive_packets_total eth0":  0,
		"network_transmit_bytes_total eth0":   0,
		"network_transmit_packets_total eth0": 0,
	}
	// Systemd sets a limit that no request has asked for.
	if most := strings.TrimSpace(controlFile(t, c, "pids", "pids.max", "pids.max")); most != "max" {
		says["threads_max"] = parse(t, most)
	} else {
		says["threads_max"] = 0
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
	cgroups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range cgroups {
		// With systemd, crun puts the processes into a cgroup beneath that of the container.
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), c.ID) {
			continue
		}
		links, err := filepath.Glob(filepath.Dir(file) + "/fd/*")
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

// controlFile reads a file of the cgroup of a container.
func controlFile(t *testing.T, c *harness.Container, controller, v1, v2 string) string {
	t.Helper()
	return chosenFile(t, c, func(path string) string { return cgroupOf(c, path) }, controller, v1, v2)
}

// limitFile reads a file of the cgroup that has the limits of a container: the one that its processes are in.
func limitFile(t *testing.T, c *harness.Container, controller, v1, v2 string) string {
	t.Helper()
	return chosenFile(t, c, func(path string) string { return path }, controller, v1, v2)
}

// chosenFile reads a file of the cgroup that is chosen by the path of the processes' one. With v1 beside v2, v1 is looked at.
func chosenFile(t *testing.T, c *harness.Container, choose func(path string) string, controller, v1, v2 string) string {
	t.Helper()
	lines, err := os.ReadFile("/proc/" + containerPID(t, c) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(lines)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		f[2] = choose(f[2])
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
// beneath it, which has the limits.
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
	return keyedIn(t, controlFile(t, c, controller, v1, v2), keys...)
}

func keyedIn(t *testing.T, text string, keys ...string) uint64 {
	t.Helper()
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
