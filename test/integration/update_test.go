package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/test/harness"
)

// update changes the limits of a container.
func update(n *harness.Node, c *harness.Container, r *runtimeapi.LinuxContainerResources) error {
	_, err := n.Runtime.UpdateContainerResources(n.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: r})
	return err
}

// wantQuota compares what the kernel has.
func wantQuota(t *testing.T, what string, c *harness.Container, quota string) {
	t.Helper()
	v1, v2 := quota, strings.Replace(quota, "-1", "max", 1)+" 100000"
	if got := cgroupFile(t, c, "cpu.cfs_quota_us", "cpu.max"); got != v1 && got != v2 {
		t.Errorf("quota %s: got %q, want %q or %q", what, got, v1, v2)
	}
}

// TestUpdate: limits of a running container are changed, lifted, and left alone as a whole if the kernel refuses one.
func TestUpdate(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		c := p.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 10000, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}},
			}
		})
		wantQuota(t, "of a new container", c, "10000")
		untouched := [][2]string{
			{"cpu.shares", "cpu.weight"}, {"cpuset.cpus", "cpuset.cpus"}, {"hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"},
		}
		var were []string
		for _, file := range untouched {
			were = append(were, cgroupFile(t, c, file[0], file[1]))
		}
		for range 2 {
			if err := update(n, c, &runtimeapi.LinuxContainerResources{CpuQuota: -1}); err != nil {
				t.Fatalf("lift the quota: %v", err)
			}
			wantQuota(t, "after it was lifted", c, "-1")
			equal(t, "quota in the status", c.Status().GetResources().GetLinux().GetCpuQuota(), -1)
			if err := update(n, c, &runtimeapi.LinuxContainerResources{CpuQuota: 20000}); err != nil {
				t.Fatalf("set a quota again: %v", err)
			}
			wantQuota(t, "after it was set again", c, "20000")
		}

		// What is refused by the daemon, and what only the kernel refuses.
		err := update(n, c, &runtimeapi.LinuxContainerResources{CpuShares: 100, CpuQuota: 30000, CpusetCpus: "99999"})
		wantError(t, err, codes.FailedPrecondition, "cpuset_cpus", "99999")
		if err := update(n, c, refusedByTheKernel(t, p)); err == nil {
			t.Error("an update that the kernel refuses: got no error")
		} else if err := mentions(err, "cpu"); err != nil {
			t.Errorf("an update that the kernel refuses: %v", err)
		}
		wantQuota(t, "after updates that failed", c, "20000")
		for i, file := range untouched {
			equal(t, file[0]+" after updates that failed", cgroupFile(t, c, file[0], file[1]), were[i])
		}
		equal(t, "score after updates that failed", oomScore(t, c), "0")
		r := c.Status().GetResources().GetLinux()
		equal(t, "quota in the status after updates that failed", r.GetCpuQuota(), 20000)
		equal(t, "CPUs in the status after updates that failed", r.GetCpusetCpus(), "")
		equal(t, "state", c.Status().GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	})
}

// refusedByTheKernel is an update of which a part is possible and another is not: more CPU time than the pod has (v1), or
// words which are no limit (v2).
func refusedByTheKernel(t *testing.T, p *harness.Pod) *runtimeapi.LinuxContainerResources {
	t.Helper()
	refused := &runtimeapi.LinuxContainerResources{
		CpuShares: 100, CpusetCpus: "0", OomScoreAdj: 500, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
	}
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if host.Mode == cgroup.V2 {
		refused.Unified = map[string]string{"cpu.max": "nonsense"}
		return refused
	}
	dir, _ := host.Dir("cpu", p.Config.GetLinux().GetCgroupParent())
	if err := os.WriteFile(filepath.Join(dir, "cpu.cfs_quota_us"), []byte("50000"), 0); err != nil {
		t.Fatal(err)
	}
	refused.CpuQuota = 60000
	return refused
}

func oomScore(t *testing.T, c *harness.Container) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", containerPID(t, c), "oom_score_adj"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// TestUpdateEverything: each limit reaches the kernel, in a container that runs and in one that is yet to be started; the
// status shows it, also after the daemon was killed; the container is not restarted.
func TestUpdateEverything(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		n.Pull()
		c, err := p.Create(n.ContainerConfig([]string{"sh", "-c", "sleep 1000 & wait"}))
		if err != nil {
			t.Fatal(err)
		}
		const mib = 1 << 20
		limits := func(k int64) *runtimeapi.LinuxContainerResources {
			return &runtimeapi.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: k * 10000, CpuShares: k * 512, MemoryLimitInBytes: k * 32 * mib, MemorySwapLimitInBytes: k * 48 * mib,
				OomScoreAdj: k * 100, CpusetCpus: "0", HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: uint64(k) * 2 * mib}},
				Unified: map[string]string{"pids.max": fmt.Sprint(k * 16)},
			}
		}
		check := func(what string, k int64) {
			t.Helper()
			wantQuota(t, what, c, fmt.Sprint(k*10000))
			for _, f := range []struct{ v1, v2, want string }{
				{"memory.limit_in_bytes", "memory.max", fmt.Sprint(k * 32 * mib)},
				{"cpuset.cpus", "cpuset.cpus", "0"},
				{"hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max", fmt.Sprint(k * 2 * mib)},
				{"pids.max", "pids.max", fmt.Sprint(k * 16)},
			} {
				equal(t, f.v1+" "+what, cgroupFile(t, c, f.v1, f.v2), f.want)
			}
			swap := cgroupFile(t, c, "memory.memsw.limit_in_bytes", "memory.swap.max")
			if swap != fmt.Sprint(k*48*mib) && swap != fmt.Sprint(k*16*mib) {
				t.Errorf("swap %s is limited to %s, want %d, or %d without memory", what, swap, k*48*mib, k*16*mib)
			}
			equal(t, "score "+what, oomScore(t, c), fmt.Sprint(k*100))
			equal(t, "score of a child "+what, c.Output("sh", "-c", "until p=$(pidof sleep); do usleep 10000; done; cat /proc/$p/oom_score_adj"), fmt.Sprint(k*100))
			if got := c.Status().GetResources().GetLinux(); !proto.Equal(got, limits(k)) {
				t.Errorf("limits in the status %s are %v, want %v", what, got, limits(k))
			}
		}
		if err := update(n, c, limits(1)); err != nil {
			t.Fatalf("update a created container: %v", err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		pid, begun := containerPID(t, c), c.Status().GetStartedAt()
		check("of a container that was updated before its start", 1)
		for _, k := range []int64{3, 2} {
			if err := update(n, c, limits(k)); err != nil {
				t.Fatalf("update a running container: %v", err)
			}
			check("after an update", k)
		}
		n.KillDaemon()
		check("after the daemon was killed", 2)
		equal(t, "PID", containerPID(t, c), pid)
		equal(t, "start", c.Status().GetStartedAt(), begun)

		lifted := &runtimeapi.LinuxContainerResources{CpuQuota: -1, CpuPeriod: 50000, CpuShares: 1 << 20, Unified: map[string]string{"pids.max": "max"}}
		if err := update(n, c, lifted); err != nil {
			t.Fatalf("lift the limits: %v", err)
		}
		equal(t, "limit on tasks after it was lifted", cgroupFile(t, c, "pids.max", "pids.max"), "max")
		if period := cgroupFile(t, c, "cpu.cfs_period_us", "cpu.max"); period != "50000" && period != "max 50000" {
			t.Errorf("period without a quota is %q, want 50000", period)
		}
		c.Stop(0)
		wantError(t, update(n, c, limits(1)), codes.FailedPrecondition, "exited")
	})
}

// TestUpdateNothing: what kubelet lists for every container although the host has it not changes nothing and is no error.
func TestUpdateNothing(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	always := &runtimeapi.LinuxContainerResources{
		Unified:        map[string]string{"memory.min": "0", "memory.low": "0", "memory.high": "max", "pids.max": "max"},
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}, {PageSize: "64KB"}},
	}
	c := n.RunPod().Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = always })
	if err := update(n, c, always); err != nil {
		t.Errorf("update: %v", err)
	}
	for _, nothing := range []*runtimeapi.LinuxContainerResources{nil, {CpuQuota: -1}} {
		if err := update(n, c, nothing); err != nil {
			t.Errorf("an update with %v: %v", nothing, err)
		}
	}
	err := update(n, c, &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "64KB", Limit: 1 << 20}}})
	wantError(t, err, codes.FailedPrecondition, "hugepage_limits[0].page_size", "64KB")
	err = update(n, c, &runtimeapi.LinuxContainerResources{Unified: map[string]string{"nope.max": "7"}})
	host, detectErr := cgroup.Detect()
	if detectErr != nil {
		t.Fatal(detectErr)
	}
	if host.Mode == cgroup.V2 {
		wantError(t, err, codes.FailedPrecondition, "unified", "nope.max")
		return
	}
	// Without cgroup v2 other runtimes ignore these values.
	if err != nil {
		t.Errorf("an update with a value for cgroup v2: %v", err)
	}
	equal(t, "warnings", fields(containerWarnings(t, n, c.ID)), "linux.resources.unified.nope.max")
}

// TestUpdatePod: what a pod is given as a whole is noted, shown by a verbose status, and still there after the daemon was
// killed; the same may be said again, also of a pod that was stopped.
func TestUpdatePod(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 1024}
	})
	shown := func() (overhead, resources int64) {
		t.Helper()
		answer, err := n.Runtime.PodSandboxStatus(n.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			Overhead, Resources struct {
				CPUShares int64 `json:"cpu_shares"`
			}
		}
		if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil {
			t.Fatalf("read %s: %v", answer.GetInfo(), err)
		}
		return info.Overhead.CPUShares, info.Resources.CPUShares
	}
	set := func(overhead, resources *runtimeapi.LinuxContainerResources) {
		t.Helper()
		if _, err := n.Runtime.UpdatePodSandboxResources(n.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: p.ID, Overhead: overhead, Resources: resources,
		}); err != nil {
			t.Errorf("update the pod: %v", err)
		}
	}
	_, resources := shown()
	equal(t, "resources of a new pod", resources, 1024)
	for range 2 {
		set(&runtimeapi.LinuxContainerResources{CpuShares: 7}, &runtimeapi.LinuxContainerResources{CpuShares: 2048})
	}
	set(nil, nil)
	n.KillDaemon()
	overhead, resources := shown()
	equal(t, "overhead", overhead, 7)
	equal(t, "resources", resources, 2048)
	p.Stop()
	set(nil, &runtimeapi.LinuxContainerResources{CpuShares: 1024})
	_, resources = shown()
	equal(t, "resources of a pod that was stopped", resources, 1024)
	_, err := n.Runtime.UpdatePodSandboxResources(n.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: "nope"})
	wantError(t, err, codes.NotFound)
}

// TestUpdateBelowUse: a memory limit below what a container uses and cannot give back is refused with the field, and what was
// stays. In cgroup v2 the kernel takes the limit and kills.
func TestUpdateBelowUse(t *testing.T) {
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		const limit = 200 << 20
		c := n.RunPod().Start([]string{"sh", "-c", "x=$(head -c 40000000 /dev/zero | tr '\\0' x); echo filled; while :; do sleep 1000; done"},
			func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = limit })
		n.Eventually("the container uses its memory", func() error { return logHas(c, "stdout F filled") })
		err := update(n, c, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 8 << 20})
		if host.Mode == cgroup.V2 {
			return
		}
		wantError(t, err, codes.FailedPrecondition, "linux.resources.memory_limit_in_bytes 8388608")
		equal(t, "limit in the status", c.Status().GetResources().GetLinux().GetMemoryLimitInBytes(), limit)
		equal(t, "limit of the cgroup", cgroupFile(t, c, "memory.limit_in_bytes", "memory.max"), strconv.Itoa(limit))
	})
}
