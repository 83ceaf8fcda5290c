package integration

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestUpdate: limits of a running container are changed, lifted, and left alone as a whole if one cannot be had.
func TestUpdate(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 10000}
		})
		update := func(r *runtimeapi.LinuxContainerResources) error {
			_, err := n.Runtime.UpdateContainerResources(n.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: r})
			return err
		}
		quota := func(what, v1, v2 string) {
			t.Helper()
			if got := cgroupFile(t, c, "cpu.cfs_quota_us", "cpu.max"); got != v1 && got != v2 {
				t.Errorf("quota %s: got %q, want %q or %q", what, got, v1, v2)
			}
		}
		quota("of a new container", "10000", "10000 100000")
		shares := cgroupFile(t, c, "cpu.shares", "cpu.weight")

		for range 2 {
			if err := update(&runtimeapi.LinuxContainerResources{CpuQuota: -1}); err != nil {
				t.Fatalf("lift the quota: %v", err)
			}
			quota("after it was lifted", "-1", "max 100000")
			equal(t, "quota in the status", c.Status().GetResources().GetLinux().GetCpuQuota(), -1)
			if err := update(&runtimeapi.LinuxContainerResources{CpuQuota: 20000}); err != nil {
				t.Fatalf("set a quota again: %v", err)
			}
			quota("after it was set again", "20000", "20000 100000")
		}

		// No machine has this CPU.
		err := update(&runtimeapi.LinuxContainerResources{CpuShares: 100, CpuQuota: 30000, CpusetCpus: "99999"})
		if err == nil {
			t.Fatal("an update to a CPU that does not exist: got no error")
		}
		quota("after an update that failed", "20000", "20000 100000")
		equal(t, "shares after an update that failed", cgroupFile(t, c, "cpu.shares", "cpu.weight"), shares)
		r := c.Status().GetResources().GetLinux()
		equal(t, "quota in the status after an update that failed", r.GetCpuQuota(), 20000)
		equal(t, "CPUs in the status after an update that failed", r.GetCpusetCpus(), "")

		fresh := n.RunPod().Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: -1}
		})
		equal(t, "quota in the status of a container without one", fresh.Status().GetResources().GetLinux().GetCpuQuota(), -1)
	})
}
