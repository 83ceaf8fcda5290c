package spec

import (
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
)

// TestMergeResources: zero values leave what was there.
func TestMergeResources(t *testing.T) {
	old := &runtimeapi.LinuxContainerResources{
		CpuQuota: 1000, CpuShares: 5, MemoryLimitInBytes: 7, Unified: map[string]string{"a.b": "1", "c.d": "2"},
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 3}},
	}
	got := MergeResources(old, &runtimeapi.LinuxContainerResources{
		CpuQuota: -1, Unified: map[string]string{"a.b": "9"}, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4}},
	})
	if got.CpuQuota != -1 || got.CpuShares != 5 || got.MemoryLimitInBytes != 7 || got.Unified["a.b"] != "9" ||
		got.Unified["c.d"] != "2" || len(got.HugepageLimits) != 1 || got.HugepageLimits[0].Limit != 4 {
		t.Errorf("got %v", got)
	}
	if old.Unified["a.b"] != "1" || old.HugepageLimits[0].Limit != 3 {
		t.Errorf("the former value was changed: %v", old)
	}
	if MergeResources(nil, nil) == nil {
		t.Error("got nil, want an empty value")
	}
}

// TestRevertResources: what was set comes back, and what was open is open again.
func TestRevertResources(t *testing.T) {
	old := &runtimeapi.LinuxContainerResources{CpuShares: 5, CpusetCpus: "0", Unified: map[string]string{"memory.low": "7"}}
	got := RevertResources(old, &runtimeapi.LinuxContainerResources{
		CpuPeriod: 2000, CpuQuota: 1000, CpuShares: 6, CpusetCpus: "1", MemoryLimitInBytes: 8, MemorySwapLimitInBytes: 9,
		Unified: map[string]string{"memory.low": "1", "memory.high": "2", "pids.max": "3"},
	})
	want := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: -1, CpuShares: 5, CpusetCpus: "0", MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1,
		Unified: map[string]string{"memory.low": "7", "memory.high": "max", "pids.max": "max"},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := RevertResources(old, &runtimeapi.LinuxContainerResources{}); !proto.Equal(got, old) {
		t.Errorf("after an empty update: got %v, want %v", got, old)
	}
}

// TestUnlimitedQuota: an OCI runtime gets it only where all of them support it. The period is one without a quota too.
func TestUnlimitedQuota(t *testing.T) {
	r := &runtimeapi.LinuxContainerResources{CpuQuota: -1, CpuPeriod: 100000, CpuShares: 7}
	for mode, set := range map[cgroup.Mode]bool{cgroup.V1: false, cgroup.Hybrid: false, cgroup.V2: true} {
		host := testHost(mode)
		got, err := Resources(r, host, nil)
		if err != nil {
			t.Fatal(err)
		}
		if (got.CPU.Quota != nil) != set || *got.CPU.Period != 100000 || *got.CPU.Shares != 7 {
			t.Errorf("%v: got %+v, want a quota: %t", mode, got.CPU, set)
		}
		if Unthrottled(r, host) == set {
			t.Errorf("%v: Unthrottled is %t", mode, set)
		}
	}
}

// TestCheckUpdate: what an update leaves open may be in force already, what it says counts.
func TestCheckUpdate(t *testing.T) {
	host := testHost(cgroup.V2)
	swap := &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 1 << 20}
	if err := CheckUpdate(swap, host); err != nil {
		t.Errorf("a limit of swap beside a limit that may be there: %v", err)
	}
	if _, err := Resources(swap, host, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a limit of swap without one of memory: got %v, want an invalid argument", err)
	}
	if err := CheckUpdate(&runtimeapi.LinuxContainerResources{CpuQuota: 5}, host); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a quota that is too small: got %v, want an invalid argument", err)
	}
}
