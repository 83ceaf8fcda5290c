package spec

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/warning"
)

const (
	// The bounds of the kernel for a CPU quota and its period, in microseconds.
	minCPUQuota  = 1000
	maxCPUQuota  = 1<<44 - 1
	minCPUPeriod = 1000
	maxCPUPeriod = 1000000

	// The bounds of a weight. The kernel takes what is outside for the nearer one, some OCI runtimes refuse it.
	minCPUShares = 2
	maxCPUShares = 1 << 18

	minOOMScoreAdj = -1000
	maxOOMScoreAdj = 1000

	unlimited = -1

	// The weight and the period of a new cgroup.
	defaultCPUShares = 1024
	defaultCPUPeriod = 100000
)

var (
	// idList is a list of CPUs or memory nodes: "0-3,7", with the kernel's
	// stepped ranges ("0-31:2/4").
	idList = regexp.MustCompile(`^\d{1,6}(-\d{1,6}(:\d{1,6}/\d{1,6})?)?(,\d{1,6}(-\d{1,6}(:\d{1,6}/\d{1,6})?)?)*$`)
	// hugepageSize is how the kernel writes a size in file names.
	hugepageSize = regexp.MustCompile(`^[1-9]\d{0,5}[KMGT]B$`)
)

// Resources translates the limits of a request for an OCI runtime on this
// host: a nil request gives no limits. What the host cannot enforce is a warning
// where other runtimes accept it, else an error of kind errdefs.ErrFailedPrecondition,
// unless the value means "no limit", which needs no enforcing. A key of unified wins
// over the typed field for the same limit. A nil list drops warnings.
//
// For an update, merge it into the former request first (MergeResources).
func Resources(request *runtimeapi.LinuxContainerResources, host Host, warnings *warning.List) (*specs.LinuxResources, error) {
	if swap := request.GetMemorySwapLimitInBytes(); swap > 0 && request.GetMemoryLimitInBytes() <= 0 {
		return nil, invalid("linux.resources.memory_swap_limit_in_bytes", swap, "needs memory_limit_in_bytes")
	}
	return translate(request, host, warnings)
}

// CheckUpdate refuses what Resources refuses, by the names that fields have in
// an update; only what a limit needs beside it may be in force already.
func CheckUpdate(update *runtimeapi.LinuxContainerResources, host Host) error {
	_, err := translate(update, host, nil)
	return err
}

func translate(request *runtimeapi.LinuxContainerResources, host Host, warnings *warning.List) (*specs.LinuxResources, error) {
	const field = "linux.resources"
	if err := checkResourceBounds(field, request); err != nil {
		return nil, err
	}
	if err := validateResources(field, request); err != nil {
		return nil, err
	}
	if err := checkIDList(field+".cpuset_cpus", request.GetCpusetCpus(), host.CPUs); err != nil {
		return nil, err
	}
	if err := checkIDList(field+".cpuset_mems", request.GetCpusetMems(), host.MemoryNodes); err != nil {
		return nil, err
	}
	result := &specs.LinuxResources{CPU: cpuLimits(request, host), Memory: memoryLimits(request, host)}
	if *result.CPU == (specs.LinuxCPU{}) {
		result.CPU = nil
	}
	var err error
	if result.HugepageLimits, err = hugepageLimits(field, request, host, warnings); err != nil {
		return nil, err
	}
	if err := applyUnified(field+".unified", result, request.GetUnified(), host, warnings); err != nil {
		return nil, err
	}
	return result, nil
}

// MergeResources returns old with every value of update that is not empty;
// neither is changed.
func MergeResources(old, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	result := &runtimeapi.LinuxContainerResources{
		CpuPeriod:              choose(update.GetCpuPeriod(), old.GetCpuPeriod()),
		CpuQuota:               choose(update.GetCpuQuota(), old.GetCpuQuota()),
		CpuShares:              choose(update.GetCpuShares(), old.GetCpuShares()),
		MemoryLimitInBytes:     choose(update.GetMemoryLimitInBytes(), old.GetMemoryLimitInBytes()),
		OomScoreAdj:            choose(update.GetOomScoreAdj(), old.GetOomScoreAdj()),
		CpusetCpus:             choose(update.GetCpusetCpus(), old.GetCpusetCpus()),
		CpusetMems:             choose(update.GetCpusetMems(), old.GetCpusetMems()),
		MemorySwapLimitInBytes: choose(update.GetMemorySwapLimitInBytes(), old.GetMemorySwapLimitInBytes()),
	}
	result.HugepageLimits = mergeHugepages(old.GetHugepageLimits(), update.GetHugepageLimits())
	for _, values := range []map[string]string{old.GetUnified(), update.GetUnified()} {
		for key, value := range values {
			result.Unified = withValue(result.Unified, key, value)
		}
	}
	return result
}

// mergeHugepages returns one limit for each page size, the last one that is given, in the order of these.
func mergeHugepages(old, update []*runtimeapi.HugepageLimit) []*runtimeapi.HugepageLimit {
	var merged []*runtimeapi.HugepageLimit
	seen := map[string]bool{}
	for _, limit := range slices.Backward(slices.Concat(old, update)) {
		if size := limit.GetPageSize(); !seen[size] {
			seen[size] = true
			merged = append(merged, &runtimeapi.HugepageLimit{PageSize: size, Limit: limit.GetLimit()})
		}
	}
	slices.Reverse(merged)
	return merged
}

// RevertResources returns limits that put back old after a part of update may
// have been applied. What old leaves open and update sets gets the value of a
// new cgroup; what that is for CPUs, memory nodes and huge pages depends on its
// parent, and the caller has to put it back.
func RevertResources(old, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	open := &runtimeapi.LinuxContainerResources{}
	if update.GetCpuQuota() != 0 {
		open.CpuQuota = unlimited
	}
	if update.GetCpuPeriod() != 0 {
		open.CpuPeriod = defaultCPUPeriod
	}
	if update.GetCpuShares() != 0 {
		open.CpuShares = defaultCPUShares
	}
	if update.GetMemoryLimitInBytes() != 0 {
		open.MemoryLimitInBytes = unlimited
	}
	if update.GetMemorySwapLimitInBytes() != 0 {
		open.MemorySwapLimitInBytes = unlimited
	}
	for key := range update.GetUnified() {
		if value, ok := newCgroup[key]; ok {
			open.Unified = withValue(open.Unified, key, value)
		}
	}
	return MergeResources(open, old)
}

// choose returns update unless it is the zero value.
func choose[T comparable](update, old T) T {
	var zero T
	if update == zero {
		return old
	}
	return update
}

// validateResources refuses values that no host could enforce.
func validateResources(field string, r *runtimeapi.LinuxContainerResources) error {
	if period := r.GetCpuPeriod(); period != 0 {
		if err := checkRange(field+".cpu_period", period, minCPUPeriod, maxCPUPeriod); err != nil {
			return err
		}
	}
	if quota := r.GetCpuQuota(); quota > 0 && (quota < minCPUQuota || quota > maxCPUQuota) {
		return invalid(field+".cpu_quota", quota, fmt.Sprintf("must be negative, which lifts it, or between %d and %d", minCPUQuota, int64(maxCPUQuota)))
	}
	if r.GetCpuShares() < 0 {
		return invalid(field+".cpu_shares", r.GetCpuShares(), "must not be negative")
	}
	if r.GetMemoryLimitInBytes() < unlimited {
		return invalid(field+".memory_limit_in_bytes", r.GetMemoryLimitInBytes(), "must be -1 or positive")
	}
	swap := r.GetMemorySwapLimitInBytes()
	if swap < unlimited || swap > 0 && swap < r.GetMemoryLimitInBytes() {
		return invalid(field+".memory_swap_limit_in_bytes", swap,
			"is memory and swap together and must be -1 or at least memory_limit_in_bytes")
	}
	if err := checkRange(field+".oom_score_adj", r.GetOomScoreAdj(), minOOMScoreAdj, maxOOMScoreAdj); err != nil {
		return err
	}
	for _, set := range []struct{ name, value string }{
		{"cpuset_cpus", r.GetCpusetCpus()}, {"cpuset_mems", r.GetCpusetMems()},
	} {
		if set.value != "" && !idList.MatchString(set.value) {
			return invalid(field+"."+set.name, set.value, "must be a list of numbers and ranges like 0-3,7")
		}
	}
	for i, limit := range r.GetHugepageLimits() {
		if !hugepageSize.MatchString(limit.GetPageSize()) {
			return invalid(fmt.Sprintf("%s.hugepage_limits[%d].page_size", field, i), limit.GetPageSize(),
				"must be a size in the kernel's notation like 2MB")
		}
	}
	return validateUnified(field+".unified", r.GetUnified())
}

// Unthrottled tells that a request lifts the CPU quota and Resources leaves
// that to the caller: crun 1.8 writes -1 to a cgroup v1 as an unsigned number,
// which the kernel refuses. A new cgroup has no quota to lift.
func Unthrottled(r *runtimeapi.LinuxContainerResources, host Host) bool {
	return r.GetCpuQuota() < 0 && !host.onUnified() && host.hasController("cpu")
}

func cpuLimits(r *runtimeapi.LinuxContainerResources, host Host) *specs.LinuxCPU {
	cpu := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if shares := r.GetCpuShares(); shares > 0 {
		value := uint64(min(max(shares, minCPUShares), maxCPUShares))
		cpu.Shares = &value
	}
	if quota := max(r.GetCpuQuota(), unlimited); quota != 0 && !Unthrottled(r, host) {
		cpu.Quota = &quota
	}
	if r.GetCpuPeriod() != 0 {
		period := uint64(r.GetCpuPeriod())
		cpu.Period = &period
	}
	return cpu
}

// memoryLimits limits swap to nothing beside a memory limit, unless swap is
// asked for: otherwise a container at its limit would begin to swap.
func memoryLimits(r *runtimeapi.LinuxContainerResources, host Host) *specs.LinuxMemory {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if swap == 0 {
		swap = limit
	}
	memory := &specs.LinuxMemory{}
	if limit != 0 {
		memory.Limit = &limit
	}
	if swap != 0 && host.SwapLimit {
		memory.Swap = &swap
	}
	if memory.Limit == nil && memory.Swap == nil {
		return nil
	}
	return memory
}

// hugepageLimits leaves out sizes that the host does not know when they are
// limited to nothing: kubelet lists every size that exists anywhere.
func hugepageLimits(field string, r *runtimeapi.LinuxContainerResources, host Host, warnings *warning.List) ([]specs.LinuxHugepageLimit, error) {
	var limits []specs.LinuxHugepageLimit
	for i, limit := range r.GetHugepageLimits() {
		if slices.Contains(host.HugepageSizes, limit.GetPageSize()) {
			limits = append(limits, specs.LinuxHugepageLimit{Pagesize: limit.GetPageSize(), Limit: limit.GetLimit()})
			continue
		}
		switch {
		case limit.GetLimit() == 0:
		case len(host.HugepageSizes) == 0: // a host that counts no huge pages
			warnings.Add(fmt.Sprintf("%s.hugepage_limits[%d].page_size", field, i), limit.GetPageSize(),
				"is not limited: this host has no usable hugetlb controller")
		default:
			return nil, unavailable(fmt.Sprintf("%s.hugepage_limits[%d].page_size", field, i), limit.GetPageSize(),
				fmt.Sprintf("this host cannot limit pages of this size, only of %v", host.HugepageSizes))
		}
	}
	return limits, nil
}

// oomScoreAdj returns the score of the request, no lower than the daemon may
// set it. Without resources it is 0: else the container would inherit that of the supervisor, which
// the OOM killer spares.
func oomScoreAdj(in Input) *int {
	resources := in.Config.GetLinux().GetResources()
	value := int(resources.GetOomScoreAdj())
	if value < in.Host.MinOOMScoreAdj && resources != nil {
		in.warnings.Add("linux.resources.oom_score_adj", value,
			fmt.Sprintf("was raised to %d: a lower score needs CAP_SYS_RESOURCE", in.Host.MinOOMScoreAdj))
	}
	value = max(value, in.Host.MinOOMScoreAdj)
	return &value
}

// onUnified tells whether the OCI runtime sets limits in a v2 hierarchy.
func (h Host) onUnified() bool { return h.Cgroup == cgroup.V2 }

// hasController tells whether limits of the controller can be set.
func (h Host) hasController(name string) bool { return slices.Contains(h.Controllers, name) }
