package integration

import (
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestLimitsAreEnforced: a limit is more than a number in a file. A CPU quota throttles a loop, and a limit on
// processes refuses the one too many, while the container lives on.
func TestLimitsAreEnforced(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		pod := n.RunPod()
		busy := pod.Start([]string{"sh", "-c", "while true; do :; done"}, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 10000}
		})
		n.Eventually("the loop is throttled", func() error {
			stat := cgroupFile(t, busy, "cpu.stat", "cpu.stat")
			for line := range strings.Lines(stat + "\n") {
				var throttled int
				if got, err := fmt.Sscanf(line, "nr_throttled %d", &throttled); got == 1 && err == nil && throttled > 0 {
					return nil
				}
			}
			return fmt.Errorf("cpu.stat is %q", stat)
		})

		crowd := pod.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{Unified: map[string]string{"pids.max": "8"}}
		})
		answer := crowd.Exec("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done")
		if !strings.Contains(string(answer.GetStderr()), "fork") {
			t.Errorf("ten processes under a limit of eight: exit code %d, stderr %q, want a refused fork",
				answer.GetExitCode(), answer.GetStderr())
		}
		equal(t, "state", crowd.Status().GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	})
}
