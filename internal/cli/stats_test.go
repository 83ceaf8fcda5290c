package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *canned) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stats == nil {
		return nil, status.Error(codes.Unimplemented, "no stats")
	}
	answer := &runtimeapi.ListContainerStatsResponse{Stats: c.stats[0]}
	if len(c.stats) > 1 {
		c.stats = c.stats[1:]
	}
	c.calls = append(c.calls, "stats")
	return answer, nil
}

func (c *canned) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	if c.podStats == nil {
		return nil, status.Error(codes.Unimplemented, "no pod stats")
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: c.podStats}, nil
}

func (c *canned) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	if c.descriptors == nil {
		return nil, status.Error(codes.Unimplemented, "no metrics")
	}
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: c.descriptors}, nil
}

func (c *canned) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: c.metrics}, nil
}

func u64(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// using is a reading of a container that tells no rate.
func using(id, name string, at time.Duration, cpu uint64) *runtimeapi.ContainerStats {
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: id, Metadata: &runtimeapi.ContainerMetadata{Name: name}},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: epoch.Add(at).UnixNano(), UsageCoreNanoSeconds: u64(cpu)},
		Memory:     &runtimeapi.MemoryUsage{Timestamp: 1, WorkingSetBytes: u64(3_000_000)},
	}
}

// busy is a runtime which tells everything.
func busy() *canned {
	c := newCanned()
	nginx := using(idNginx, "nginx", 0, 5e9)
	nginx.Cpu.UsageNanoCores, nginx.Memory.AvailableBytes = u64(1_255_000_000), u64(7_000_000)
	nginx.WritableLayer = &runtimeapi.FilesystemUsage{UsedBytes: u64(42_000), InodesUsed: u64(7)}
	for _, psi := range []**runtimeapi.PsiStats{&nginx.Cpu.Psi, &nginx.Memory.Psi} {
		*psi = &runtimeapi.PsiStats{Some: &runtimeapi.PsiData{Avg10: 12.34}, Full: &runtimeapi.PsiData{}}
	}
	postgres := using(idPG, "postgres", 0, 1)
	postgres.Cpu.UsageNanoCores = u64(0)
	c.stats = [][]*runtimeapi.ContainerStats{{postgres, nginx}}
	eth0 := &runtimeapi.NetworkInterfaceUsage{Name: "eth0", RxBytes: u64(2000), TxBytes: u64(100)}
	c.podStats = []*runtimeapi.PodSandboxStats{{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: idWeb},
		Linux: &runtimeapi.LinuxPodSandboxStats{Network: &runtimeapi.NetworkUsage{
			DefaultInterface: eth0, Interfaces: []*runtimeapi.NetworkInterfaceUsage{eth0, {Name: "net1", RxBytes: u64(500), TxBytes: u64(1)}},
		}},
	}}
	base := []string{"id", "name", "image", "namespace", "pod", "container"}
	c.descriptors = []*runtimeapi.MetricDescriptor{
		{Name: "container_processes", Help: "Number of processes.", LabelKeys: base},
		{Name: "container_fs_reads_bytes_total", Help: "Read.", LabelKeys: append(base[:6:6], "device")},
		{Name: "container_network_receive_bytes_total", Help: "Received.", LabelKeys: append(base[:6:6], "interface")},
		{Name: "container_cpu_usage_seconds_total", Help: "CPU.", LabelKeys: append(base[:6:6], "cpu")},
		{Name: "container_start_time_seconds", Help: "Start.", LabelKeys: base},
	}
	of := func(container string, own ...string) []string {
		return append([]string{"/c", "n", "img", "shop", "web", container}, own...)
	}
	c.metrics = []*runtimeapi.PodSandboxMetrics{
		{
			PodSandboxId: idWeb,
			Metrics: []*runtimeapi.Metric{
				{Name: "container_network_receive_bytes_total", LabelValues: of("", "eth0"), Value: u64(2500)},
			},
			ContainerMetrics: []*runtimeapi.ContainerMetrics{{ContainerId: idNginx, Metrics: []*runtimeapi.Metric{
				{Name: "container_processes", MetricType: runtimeapi.MetricType_GAUGE, LabelValues: of("nginx"), Value: u64(3)},
				{Name: "container_fs_reads_bytes_total", LabelValues: of("nginx", "/dev/sda"), Value: u64(1000)},
				{Name: "container_fs_reads_bytes_total", LabelValues: of("nginx", "/dev/sdb"), Value: u64(2000)},
				{Name: "container_cpu_usage_seconds_total", LabelValues: of("nginx", "total"), Value: u64(75)},
				{Name: "container_start_time_seconds", MetricType: runtimeapi.MetricType_GAUGE, LabelValues: of("nginx"), Value: u64(uint64(epoch.Add(-time.Hour).Unix()))},
			}}},
		},
		{PodSandboxId: idDB},
	}
	return c
}

func TestStats(t *testing.T) {
	busy().berth(t, "stats").want(t, 0, `
CONTAINER ID   POD        NAME       CPU      MEMORY   LIMIT     PIDS   NET IN/OUT       DISK READ/WRITTEN   LAYER     PRESSURE CPU/MEM/IO
e5e5e5e5e5e5   shop/db    postgres   0.0%     3.0 MB   -         -      -                -                   -         -
c1c1c1c1c1c1   shop/web   nginx      125.5%   3.0 MB   10.0 MB   3      2.5 kB / 101 B   3.0 kB / 0 B        42.0 kB   12.3 / 12.3 / 0.0
`)
	got := busy().berth(t, "stats", "web", "--no-stream", "-o", "json")
	var items []usageItem
	if err := json.Unmarshal([]byte(got.out), &items); err != nil || len(items) != 1 || items[0].ID != idNginx || items[0].Pod.ID != idWeb {
		t.Fatalf("JSON (%v):\n%s", err, got.out)
	}
	for _, want := range []string{`"limitBytes": 10000000`, `"percent": 125.5`, `"swapBytes": null`, `"processes": 3`, `"inBytes": 2500`} {
		if !strings.Contains(got.out, want) {
			t.Errorf("JSON has no %s:\n%s", want, got.out)
		}
	}
	busy().berth(t, "stats", "nothing").complains(t, 1, `no pod or container "nothing"`, "berth ps -a")
	busy().berth(t, "stats", "-w", "--no-stream").complains(t, exitUsage, "--watch and --no-stream exclude each other")
	busy().berth(t, "stats", "--interval", "1ms").complains(t, exitUsage, "--interval 1ms: want at least 200ms")
	newCanned().berth(t, "stats").complains(t, 1, "read stats", "cannot do that")
}

// A runtime that tells no rate is asked twice; what it does not know is a dash.
func TestStatsOfAPlainRuntime(t *testing.T) {
	c := newCanned()
	c.stats = [][]*runtimeapi.ContainerStats{
		{using(idPG, "postgres", 0, 1e9)},
		{using(idPG, "postgres", 2*time.Second, 2e9)},
	}
	c.berth(t, "stats", "-o", "yaml").want(t, 0, `
- at: "2026-05-01T12:00:02Z"
  cpu:
    nanoseconds: 2000000000
    percent: 50
  disk: null
  id: `+idPG+`
  memory:
    limitBytes: null
    rssBytes: null
    usageBytes: null
    workingSetBytes: 3000000
  name: postgres
  pod:
    id: `+idDB+`
    name: db
    namespace: shop
    uid: uid-db
  podNetwork: null
  pressure: null
  processes: null
  swapBytes: null
  writableLayer: null`)
	if c.noted() != "stats\nstats" {
		t.Errorf("calls are %q, want two readings", c.noted())
	}
}

// Watching goes on until it is interrupted, which is no failure.
func TestStatsWatch(t *testing.T) {
	c := busy()
	endpoint := c.serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errOut bytes.Buffer
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	done := make(chan int, 1)
	go func() {
		args := []string{"--endpoint", endpoint, "stats", "-w", "--interval", leastInterval.String()}
		done <- Main(ctx, args, IO{In: null, Out: &out, Err: &errOut})
	}()
	for end := time.Now().Add(time.Minute); strings.Count(c.noted(), "stats") < 3 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if code := <-done; code != 0 || strings.Count(out.String(), "nginx") < 2 {
		t.Errorf("watching ends with %d after\n%s%s", code, out.String(), errOut.String())
	}
}

func TestPodMetrics(t *testing.T) {
	busy().berth(t, "pods", "--metrics").want(t, 0, `
POD        CONTAINER   METRIC                        OF                VALUE
shop/web   -           network_receive_bytes_total   interface=eth0    2.5 kB
shop/web   nginx       processes                     -                 3
shop/web   nginx       fs_reads_bytes_total          device=/dev/sda   1.0 kB
shop/web   nginx       fs_reads_bytes_total          device=/dev/sdb   2.0 kB
shop/web   nginx       cpu_usage_seconds_total       cpu=total         1m15s
shop/web   nginx       start_time_seconds            -                 1h ago
`)
	got := busy().berth(t, "pods", "--metrics", "-o", "json", "web")
	var items []metricItem
	if err := json.Unmarshal([]byte(got.out), &items); err != nil || len(items) != 6 || items[0].Pod.Name != "web" || items[1].ID != idNginx {
		t.Fatalf("JSON (%v):\n%s", err, got.out)
	}
	for _, want := range []string{`"kind": "gauge"`, `"help": "Number of processes."`, `"device": "/dev/sdb"`, `"value": 2500`} {
		if !strings.Contains(got.out, want) {
			t.Errorf("JSON has no %s:\n%s", want, got.out)
		}
	}
	busy().berth(t, "pods", "--metrics", "-n", "test", "-o", "json").want(t, 0, "[]")
	busy().berth(t, "pods", "--metrics", "db", "-o", "json").want(t, 0, "[]")
	busy().berth(t, "pods", "--metrics", "nope").complains(t, 1, `no pod "nope"`)
	busy().berth(t, "pods", "--metrics", "-q").complains(t, exitUsage, "--quiet and --metrics exclude each other")
	newCanned().berth(t, "pods", "--metrics").complains(t, 1, "not supported by this runtime", "berth stats")
	newCanned().berth(t, "pods", "web").complains(t, exitUsage, "takes no arguments but with --metrics")
}

func TestStatsCompletion(t *testing.T) {
	if got := newCanned().berth(t, "__complete", "stats", ""); !strings.Contains(got.out, "web/nginx\tcontainer, running\n") {
		t.Errorf("stats completes to\n%s", got.out)
	}
	if got := newCanned().berth(t, "__complete", "pods", "--metrics", ""); !strings.Contains(got.out, "web\tpod in shop, ready\n") || strings.Contains(got.out, "nginx") {
		t.Errorf("pods completes to\n%s", got.out)
	}
}
