package cli

import (
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The flags become what the CRI asks for, and nothing else.
func TestUpdate(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want *runtimeapi.LinuxContainerResources
	}{
		"everything": {
			[]string{
				"--cpus", "1.5", "--cpu-shares", "512", "--memory", "64m", "--memory-swap", "128m", "--cpuset-cpus", "0", "--cpuset-mems", "0",
				"--oom-score-adj", "5", "--hugepages", "2MB=4m", "--hugepages", "1GB=0", "--unified", "pids.max=9",
			},
			&runtimeapi.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 150000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 128 << 20,
				CpusetCpus: "0", CpusetMems: "0", OomScoreAdj: 5, Unified: map[string]string{"pids.max": "9"},
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
			},
		},
		"lift_quota":  {[]string{"--cpus", "0"}, &runtimeapi.LinuxContainerResources{CpuQuota: -1}},
		"lift_memory": {[]string{"--memory", "max"}, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCanned()
			c.berth(t, append([]string{"update", "nginx"}, tc.args...)...).want(t, 0, "nginx")
			if c.updated.GetContainerId() != idNginx || !proto.Equal(c.updated.GetLinux(), tc.want) {
				t.Errorf("update is %v, want %v of nginx", c.updated, tc.want)
			}
		})
	}
}

// What cannot be meant is refused before anything is asked of the runtime.
func TestUpdateRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"nothing":   {nil, "want at least one limit"},
		"unified":   {[]string{"--unified", "pids.max"}, `--unified "pids.max": want KEY=VALUE`},
		"hugepages": {[]string{"--hugepages", "2MB"}, `--hugepages "2MB": want SIZE=AMOUNT`},
		"memory":    {[]string{"--memory", "lots"}, `--memory "lots"`},
		"swap":      {[]string{"--memory", "64m", "--memory-swap", "32m"}, "less than --memory"},
		"cpus":      {[]string{"--cpus", "-1"}, "--cpus -1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCanned()
			c.berth(t, append([]string{"update", "nginx"}, tc.args...)...).complains(t, exitUsage, tc.want)
			if c.updated != nil {
				t.Errorf("the runtime was asked for %v", c.updated)
			}
		})
	}
	newCanned().berth(t, "update", "nope", "--cpus", "1").complains(t, exitError, "nope")
}
