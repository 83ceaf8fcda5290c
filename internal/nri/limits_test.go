package nri

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestLimits: limits of the CRI come back as they went.
func TestLimits(t *testing.T) {
	asked := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: -1, CpuShares: 512, CpusetCpus: "0", CpusetMems: "0",
		MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 2 << 20,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4}}, Unified: map[string]string{"pids.max": "5"},
	}
	back, more, err := Split(Limits(asked))
	if err != nil || more != nil || !proto.Equal(back, asked) {
		t.Errorf("%v became %v and %v, %v", asked, back, more, err)
	}
	if back, more, err := Split(nil); err != nil || more != nil || !proto.Equal(back, &runtimeapi.LinuxContainerResources{}) {
		t.Errorf("nothing became %v and %v, %v", back, more, err)
	}
}

// TestSplitRefuses: classes are configured nowhere, and numbers of the CRI are signed.
func TestSplitRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		limits *api.LinuxResources
		kind   error
	}{
		"blockio": {&api.LinuxResources{BlockioClass: api.String("fast")}, errdefs.ErrFailedPrecondition},
		"rdt":     {&api.LinuxResources{RdtClass: api.String("gold")}, errdefs.ErrFailedPrecondition},
		"shares":  {&api.LinuxResources{Cpu: &api.LinuxCPU{Shares: api.UInt64(uint64(1) << 63)}}, errdefs.ErrInvalidArgument},
	} {
		if _, _, err := Split(test.limits); !errors.Is(err, test.kind) {
			t.Errorf("%s: got %v, want %v", name, err, test.kind)
		}
	}
}

// TestMore: what the CRI has no field for is kept apart, merged value by value, and put into a spec.
func TestMore(t *testing.T) {
	_, old, err := Split(&api.LinuxResources{
		Memory: &api.LinuxMemory{Limit: api.Int64(9), Reservation: api.Int64(5), Swappiness: api.UInt64(uint64(1))},
		Pids:   &api.LinuxPids{Limit: 7},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, update, err := Split(&api.LinuxResources{
		Memory: &api.LinuxMemory{Reservation: api.Int64(6)}, Cpu: &api.LinuxCPU{RealtimeRuntime: api.Int64(3)},
	})
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(1)
	oci := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	Apply(oci, Merge(old, update))
	m := oci.Memory
	if *m.Limit != 1 || *m.Reservation != 6 || *m.Swappiness != 1 || *oci.Pids.Limit != 7 || *oci.CPU.RealtimeRuntime != 3 {
		t.Errorf("limits are %+v, %+v, %+v, %+v", oci, m, oci.Pids, oci.CPU)
	}
	Apply(oci, nil)
	if Merge(nil, nil) != nil || Merge(old, nil) != old || Merge(nil, old) != old {
		t.Error("a merge with nothing is not what there was")
	}
}
