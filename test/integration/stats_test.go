package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestContainerStats compares the figures of a container with the files of the kernel, and expects every field that the
// host can fill.
func TestContainerStats(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		pod := n.RunPod()
		c := pod.Start([]string{"sleep", "1000"}, limited)
		c.Output("sh", "-c", "dd if=/dev/zero of=/file bs=64k count=16")
		n.Eventually("the figures are the kernel's", func() error { return sameAsKernel(t, n, c) })

		st := containerStats(t, n, c.ID)
		equal(t, "id", st.GetAttributes().GetId(), c.ID)
		equal(t, "name", st.GetAttributes().GetMetadata().GetName(), c.Config.GetMetadata().GetName())
		if layer := st.GetWritableLayer(); layer.GetUsedBytes().GetValue() < 1<<20 || layer.GetInodesUsed().GetValue() == 0 ||
			layer.GetFsId().GetMountpoint() != filepath.Join(n.Dir(), "root") {
			t.Errorf("writable layer is %v, want 1 MiB at least in the root of the daemon", layer)
		}
		for what, at := range map[string]int64{
			"cpu": st.GetCpu().GetTimestamp(), "memory": st.GetMemory().GetTimestamp(), "swap": st.GetSwap().GetTimestamp(),
			"io": st.GetIo().GetTimestamp(), "writable layer": st.GetWritableLayer().GetTimestamp(),
		} {
			if at <= 0 {
				t.Errorf("time of %s is %d", what, at)
			}
		}
		if st.GetCpu().GetUsageNanoCores() == nil {
			t.Error("there is no CPU rate")
		}
		kept := pressureFile("/") != ""
		for what, psi := range map[string]*runtimeapi.PsiStats{
			"cpu": st.GetCpu().GetPsi(), "memory": st.GetMemory().GetPsi(), "io": st.GetIo().GetPsi(),
		} {
			if (psi.GetFull() != nil && psi.GetSome() != nil) != kept {
				t.Errorf("pressure of %s is %v, want it if and only if the kernel keeps it (%v)", what, psi, kept)
			}
		}

		c.Stop(0)
		st = containerStats(t, n, c.ID)
		if st.GetCpu().GetTimestamp() == 0 || st.GetMemory().GetTimestamp() == 0 || st.GetAttributes().GetId() != c.ID {
			t.Errorf("figures of a container that has ended are %v, want who it is and when that was", st)
		}
	})
}

func containerStats(t *testing.T, n *harness.Node, id string) *runtimeapi.ContainerStats {
	t.Helper()
	answer, err := n.Runtime.ContainerStats(n.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatalf("get stats: %v", err)
	}
	return answer.GetStats()
}

// sameAsKernel reads the kernel's files, the stats, and the files again: what did not change meanwhile must be the same,
// what grows must lie between.
func sameAsKernel(t *testing.T, n *harness.Node, c *harness.Container) error {
	t.Helper()
	before, cpuBefore := memorySays(t, c), cpuSays(t, c)
	st := containerStats(t, n, c.ID)
	after, cpuAfter := memorySays(t, c), cpuSays(t, c)
	m := st.GetMemory()
	for name, got := range map[string]*runtimeapi.UInt64Value{
		"usage": m.GetUsageBytes(), "rss": m.GetRssBytes(), "page faults": m.GetPageFaults(), "major page faults": m.GetMajorPageFaults(),
		"working set": m.GetWorkingSetBytes(), "available": m.GetAvailableBytes(), "swap": st.GetSwap().GetSwapUsageBytes(),
	} {
		if got == nil {
			return fmt.Errorf("there is no %s", name)
		}
		if before[name] != after[name] {
			return fmt.Errorf("the kernel says %d, then %d for %s", before[name], after[name], name)
		}
		if got.GetValue() != after[name] {
			return fmt.Errorf("%s is %d, want %d", name, got.GetValue(), after[name])
		}
	}
	if used := st.GetCpu().GetUsageCoreNanoSeconds().GetValue(); used < cpuBefore || used > cpuAfter || used == 0 {
		return fmt.Errorf("CPU time is %d, want from %d to %d", used, cpuBefore, cpuAfter)
	}
	return nil
}

func memorySays(t *testing.T, c *harness.Container) map[string]uint64 {
	t.Helper()
	stat := func(keys ...string) uint64 { return keyed(t, c, "memory", "memory.stat", "memory.stat", keys...) }
	usage := number(t, c, "memory", "memory.usage_in_bytes", "memory.current")
	working := usage - min(usage, stat("total_inactive_file", "inactive_file"))
	return map[string]uint64{
		"usage": usage, "working set": working, "available": 64<<20 - working, "rss": stat("total_rss", "anon"),
		"page faults": stat("total_pgfault", "pgfault"), "major page faults": stat("total_pgmajfault", "pgmajfault"), "swap": 0,
	}
}

// cpuSays is the CPU time in nanoseconds.
func cpuSays(t *testing.T, c *harness.Container) uint64 {
	t.Helper()
	if text := controlFile(t, c, "cpuacct", "cpuacct.usage", "cpu.stat"); !strings.Contains(text, " ") {
		return parse(t, strings.TrimSpace(text))
	}
	return 1000 * keyed(t, c, "cpu", "cpu.stat", "cpu.stat", "usage_usec")
}

// TestPodStats: figures of the pod as a whole, of its network as its processes see it, and of its containers.
func TestPodStats(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	pod := n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.Annotations = map[string]string{"k": "v"} })
	first := pod.Start([]string{"sleep", "1000"})
	second := pod.Start([]string{"sleep", "1000"})
	n.Eventually("the figures of the network are the kernel's", func() error {
		before := devices(t, first)["eth0"]
		network := podStats(t, n, pod.ID).GetLinux().GetNetwork()
		after := devices(t, first)["eth0"]
		d := network.GetDefaultInterface()
		got := [2]uint64{d.GetRxBytes().GetValue(), d.GetTxBytes().GetValue()}
		if d.GetName() != "eth0" || d.GetRxErrors() == nil || d.GetTxErrors() == nil || len(network.GetInterfaces()) != 0 || network.GetTimestamp() <= 0 {
			return fmt.Errorf("network is %v, want eth0 and no other", network)
		}
		if before != after || got != after {
			return fmt.Errorf("eth0 has %v, the kernel says %v and %v", got, before, after)
		}
		return nil
	})
	st := podStats(t, n, pod.ID)
	equal(t, "id", st.GetAttributes().GetId(), pod.ID)
	equal(t, "uid", st.GetAttributes().GetMetadata().GetUid(), pod.Config.GetMetadata().GetUid())
	equal(t, "annotation", st.GetAttributes().GetAnnotations()["k"], "v")
	equal(t, "processes", st.GetLinux().GetProcess().GetProcessCount().GetValue(), 2)
	if ids := containerIDs(st.GetLinux().GetContainers()); !sameIDs(ids, []string{first.ID, second.ID}) {
		t.Errorf("containers are %v", ids)
	}
	if l := st.GetLinux(); l.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || l.GetCpu().GetUsageNanoCores() == nil ||
		l.GetMemory().GetWorkingSetBytes().GetValue() == 0 || l.GetIo().GetTimestamp() <= 0 {
		t.Errorf("figures of the pod are %v", l)
	}
	host := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	if network := podStats(t, n, host.ID).GetLinux().GetNetwork(); network != nil {
		t.Errorf("network of a pod on that of the host is %v, want none of its own", network)
	}
	// With an empty ID kubelet asks whether there is such a call; only Unimplemented is a no.
	_, err := n.Runtime.PodSandboxStats(n.Context(), &runtimeapi.PodSandboxStatsRequest{})
	wantError(t, err, codes.InvalidArgument, "pod_sandbox_id")
	_, err = n.Runtime.PodSandboxStats(n.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "feed"})
	wantError(t, err, codes.NotFound, "feed")
	_, err = n.Runtime.ContainerStats(n.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "feed"})
	wantError(t, err, codes.NotFound, "feed")
}

func podStats(t *testing.T, n *harness.Node, id string) *runtimeapi.PodSandboxStats {
	t.Helper()
	answer, err := n.Runtime.PodSandboxStats(n.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
	if err != nil {
		t.Fatalf("get stats: %v", err)
	}
	return answer.GetStats()
}

// devices are the bytes that the interfaces of a container have received and sent.
func devices(t *testing.T, c *harness.Container) map[string][2]uint64 {
	t.Helper()
	text, err := os.ReadFile("/proc/" + containerPID(t, c) + "/net/dev") // of the process's own network namespace
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][2]uint64{}
	for line := range strings.Lines(string(text)) {
		if name, rest, ok := strings.Cut(line, ":"); ok {
			f := strings.Fields(rest)
			found[strings.TrimSpace(name)] = [2]uint64{parse(t, f[0]), parse(t, f[8])}
		}
	}
	return found
}

func containerIDs(list []*runtimeapi.ContainerStats) []string {
	var ids []string
	for _, st := range list {
		ids = append(ids, st.GetAttributes().GetId())
	}
	return ids
}

func podIDs(list []*runtimeapi.PodSandboxStats) []string {
	var ids []string
	for _, st := range list {
		ids = append(ids, st.GetAttributes().GetId())
	}
	return ids
}

// sameIDs tells whether two lists have the same items, each as often, in whatever order.
func sameIDs(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// TestStatsListsAndStreams: filters restrict, what does not run is left out, and each stream has what its list has, every
// item once. Of nothing a stream ends at once.
func TestStatsListsAndStreams(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	for name, got := range streams(t, n) {
		if len(got) != 0 {
			t.Errorf("%s of an empty node has %v", name, got)
		}
	}
	front := n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.Labels["tier"] = "front" })
	back := n.RunPod()
	stopped := n.RunPod()
	stopped.Stop()
	one := front.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"app": "one"} })
	two := back.Start([]string{"sleep", "1000"})
	ended := back.Start([]string{"true"})
	ended.Exited()

	for name, tc := range map[string]struct {
		filter *runtimeapi.ContainerStatsFilter
		want   []string
	}{
		"nil": {nil, []string{one.ID, two.ID}}, "empty": {&runtimeapi.ContainerStatsFilter{}, []string{one.ID, two.ID}},
		"id": {&runtimeapi.ContainerStatsFilter{Id: two.ID[:20]}, []string{two.ID}}, "pod": {&runtimeapi.ContainerStatsFilter{PodSandboxId: front.ID}, []string{one.ID}},
		"label":   {&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"app": "one"}}, []string{one.ID}},
		"nothing": {&runtimeapi.ContainerStatsFilter{Id: two.ID, PodSandboxId: front.ID}, nil},
		"ended":   {&runtimeapi.ContainerStatsFilter{Id: ended.ID}, nil},
	} {
		answer, err := n.Runtime.ListContainerStats(n.Context(), &runtimeapi.ListContainerStatsRequest{Filter: tc.filter})
		if err != nil || !sameIDs(containerIDs(answer.GetStats()), tc.want) {
			t.Errorf("%s: containers %v (%v), want %v", name, containerIDs(answer.GetStats()), err, tc.want)
		}
	}
	for name, tc := range map[string]struct {
		filter *runtimeapi.PodSandboxStatsFilter
		want   []string
	}{
		"nil": {nil, []string{front.ID, back.ID}}, "id": {&runtimeapi.PodSandboxStatsFilter{Id: back.ID}, []string{back.ID}},
		"label":   {&runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"tier": "front"}}, []string{front.ID}},
		"stopped": {&runtimeapi.PodSandboxStatsFilter{Id: stopped.ID}, nil},
	} {
		answer, err := n.Runtime.ListPodSandboxStats(n.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: tc.filter})
		if err != nil || !sameIDs(podIDs(answer.GetStats()), tc.want) {
			t.Errorf("%s: pods %v (%v), want %v", name, podIDs(answer.GetStats()), err, tc.want)
		}
	}
	images, err := n.Images.ListImages(n.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(images.GetImages()) != 1 {
		t.Fatalf("images are %v (%v), want one", images, err)
	}
	want := map[string][]string{
		"StreamPodSandboxes": {front.ID, back.ID, stopped.ID}, "StreamContainers": {one.ID, two.ID, ended.ID},
		"StreamContainerStats": {one.ID, two.ID}, "StreamPodSandboxStats": {front.ID, back.ID},
		"StreamPodSandboxMetrics": {front.ID, back.ID}, "StreamImages": {images.GetImages()[0].GetId()},
	}
	for name, got := range streams(t, n) {
		if !sameIDs(got, want[name]) {
			t.Errorf("%s has %v, want %v", name, got, want[name])
		}
	}
}

// streams reads the six streams to their ends.
func streams(t *testing.T, n *harness.Node) map[string][]string {
	t.Helper()
	pods, err1 := n.Runtime.StreamPodSandboxes(n.Context(), &runtimeapi.StreamPodSandboxesRequest{})
	ctrs, err2 := n.Runtime.StreamContainers(n.Context(), &runtimeapi.StreamContainersRequest{})
	ctrStats, err3 := n.Runtime.StreamContainerStats(n.Context(), &runtimeapi.StreamContainerStatsRequest{})
	podStats, err4 := n.Runtime.StreamPodSandboxStats(n.Context(), &runtimeapi.StreamPodSandboxStatsRequest{})
	images, err5 := n.Images.StreamImages(n.Context(), &runtimeapi.StreamImagesRequest{})
	for _, err := range []error{err1, err2, err3, err4, err5} {
		if err != nil {
			t.Fatalf("begin stream: %v (%v)", err, status.Code(err))
		}
	}
	return map[string][]string{
		"StreamPodSandboxes": drain(t, pods.Recv, func(m *runtimeapi.StreamPodSandboxesResponse) (ids []string) {
			for _, p := range m.GetPodSandboxes() {
				ids = append(ids, p.GetId())
			}
			return ids
		}),
		"StreamContainers": drain(t, ctrs.Recv, func(m *runtimeapi.StreamContainersResponse) (ids []string) {
			for _, c := range m.GetContainers() {
				ids = append(ids, c.GetId())
			}
			return ids
		}),
		"StreamImages": drain(t, images.Recv, func(m *runtimeapi.StreamImagesResponse) (ids []string) {
			for _, i := range m.GetImages() {
				ids = append(ids, i.GetId())
			}
			return ids
		}),
		"StreamContainerStats": drain(t, ctrStats.Recv, func(m *runtimeapi.StreamContainerStatsResponse) []string {
			return containerIDs(m.GetContainerStats())
		}),
		"StreamPodSandboxStats": drain(t, podStats.Recv, func(m *runtimeapi.StreamPodSandboxStatsResponse) []string {
			return podIDs(m.GetPodSandboxStats())
		}),
		"StreamPodSandboxMetrics": streamedMetrics(t, n),
	}
}
