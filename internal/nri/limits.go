package nri

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits are limits of the CRI in the words of NRI. What is zero in the CRI
// was not asked for.
func Limits(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	limits := &api.LinuxResources{
		Memory:  &api.LinuxMemory{Limit: set64(r.GetMemoryLimitInBytes()), Swap: set64(r.GetMemorySwapLimitInBytes())},
		Cpu:     &api.LinuxCPU{Quota: set64(r.GetCpuQuota()), Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()},
		Unified: maps.Clone(r.GetUnified()),
	}
	if v := r.GetCpuShares(); v > 0 {
		limits.Cpu.Shares = api.UInt64(uint64(v))
	}
	if v := r.GetCpuPeriod(); v > 0 {
		limits.Cpu.Period = api.UInt64(uint64(v))
	}
	for _, h := range r.GetHugepageLimits() {
		limits.HugepageLimits = append(limits.HugepageLimits, &api.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return limits
}

func set64(v int64) *api.OptionalInt64 {
	if v == 0 {
		return nil
	}
	return api.Int64(v)
}

// Split parts what a plugin wants into what the CRI has a field for, and the
// rest, which is nil if there is none. What cannot be had here is an error.
func Split(r *api.LinuxResources) (*runtimeapi.LinuxContainerResources, *api.LinuxResources, error) {
	for _, class := range []struct {
		field string
		value *api.OptionalString
	}{{"blockio_class", r.GetBlockioClass()}, {"rdt_class", r.GetRdtClass()}} {
		if class.value.GetValue() != "" {
			return nil, nil, fmt.Errorf("linux.resources.%s %q: no classes are configured on this node: %w",
				class.field, class.value.GetValue(), errdefs.ErrFailedPrecondition)
		}
	}
	mem, cpu := r.GetMemory(), r.GetCpu()
	for field, value := range map[string]uint64{"cpu.shares": cpu.GetShares().GetValue(), "cpu.period": cpu.GetPeriod().GetValue()} {
		if int64(value) < 0 {
			return nil, nil, fmt.Errorf("linux.resources.%s %d: is too large: %w", field, value, errdefs.ErrInvalidArgument)
		}
	}
	asked := &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: mem.GetLimit().GetValue(), MemorySwapLimitInBytes: mem.GetSwap().GetValue(),
		CpuQuota: cpu.GetQuota().GetValue(), CpuPeriod: int64(cpu.GetPeriod().GetValue()), CpuShares: int64(cpu.GetShares().GetValue()),
		CpusetCpus: cpu.GetCpus(), CpusetMems: cpu.GetMems(), Unified: maps.Clone(r.GetUnified()),
	}
	for _, h := range r.GetHugepageLimits() {
		asked.HugepageLimits = append(asked.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return asked, rest(r), nil
}

// rest is what the CRI has no field for.
func rest(r *api.LinuxResources) *api.LinuxResources {
	mem, cpu := r.GetMemory(), r.GetCpu()
	more := &api.LinuxResources{Pids: r.GetPids(), Devices: r.GetDevices()}
	if v := (&api.LinuxMemory{
		Reservation: mem.GetReservation(), Kernel: mem.GetKernel(), KernelTcp: mem.GetKernelTcp(), Swappiness: mem.GetSwappiness(),
		DisableOomKiller: mem.GetDisableOomKiller(), UseHierarchy: mem.GetUseHierarchy(),
	}); proto.Size(v) > 0 {
		more.Memory = v
	}
	if v := (&api.LinuxCPU{RealtimeRuntime: cpu.GetRealtimeRuntime(), RealtimePeriod: cpu.GetRealtimePeriod()}); proto.Size(v) > 0 {
		more.Cpu = v
	}
	if proto.Size(more) == 0 {
		return nil
	}
	return more
}

// Merge returns old with every value of update that is set; neither is
// changed. Both hold only what Split calls the rest.
func Merge(old, update *api.LinuxResources) *api.LinuxResources {
	switch {
	case update == nil:
		return old
	case old == nil:
		return update
	}
	merged := &api.LinuxResources{Pids: either(update.GetPids(), old.GetPids()), Devices: slices.Concat(old.GetDevices(), update.GetDevices())}
	if o, u := old.GetMemory(), update.GetMemory(); o != nil || u != nil {
		merged.Memory = &api.LinuxMemory{
			Reservation: either(u.GetReservation(), o.GetReservation()), Kernel: either(u.GetKernel(), o.GetKernel()),
			KernelTcp: either(u.GetKernelTcp(), o.GetKernelTcp()), Swappiness: either(u.GetSwappiness(), o.GetSwappiness()),
			DisableOomKiller: either(u.GetDisableOomKiller(), o.GetDisableOomKiller()),
			UseHierarchy:     either(u.GetUseHierarchy(), o.GetUseHierarchy()),
		}
	}
	if o, u := old.GetCpu(), update.GetCpu(); o != nil || u != nil {
		merged.Cpu = &api.LinuxCPU{
			RealtimeRuntime: either(u.GetRealtimeRuntime(), o.GetRealtimeRuntime()),
			RealtimePeriod:  either(u.GetRealtimePeriod(), o.GetRealtimePeriod()),
		}
	}
	return merged
}

func either[T any](update, old *T) *T {
	if update != nil {
		return update
	}
	return old
}

// Apply adds what Split calls the rest to the limits of an OCI spec.
func Apply(limits *specs.LinuxResources, more *api.LinuxResources) {
	if more == nil {
		return
	}
	oci := more.ToOCI()
	if m := oci.Memory; more.GetMemory() != nil {
		if limits.Memory == nil {
			limits.Memory = &specs.LinuxMemory{}
		}
		to := limits.Memory
		to.Reservation, to.KernelTCP, to.Swappiness = m.Reservation, m.KernelTCP, m.Swappiness
		to.Kernel = m.Kernel //nolint:staticcheck // older runtimes know it
		to.DisableOOMKiller, to.UseHierarchy = m.DisableOOMKiller, m.UseHierarchy
	}
	if c := oci.CPU; more.GetCpu() != nil {
		if limits.CPU == nil {
			limits.CPU = &specs.LinuxCPU{}
		}
		limits.CPU.RealtimeRuntime, limits.CPU.RealtimePeriod = c.RealtimeRuntime, c.RealtimePeriod
	}
	if oci.Pids != nil {
		limits.Pids = oci.Pids
	}
	limits.Devices = append(limits.Devices, oci.Devices...)
}
