package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// unlimited is how the CRI says that there is no limit.
const unlimited = -1

// limitFlags are the limits that run and update have in common.
type limitFlags struct {
	memory, memorySwap, cpusetCPUs, cpusetMems string
	cpus                                       float64
	cpuShares, oomScore                        int64
	unified, hugepages                         []string
}

func (l *limitFlags) add(f *pflag.FlagSet) {
	f.StringVarP(&l.memory, "memory", "m", "", "memory limit, a `SIZE` such as 512m")
	f.StringVar(&l.memorySwap, "memory-swap", "", "limit of memory plus swap, a `SIZE`")
	f.Float64Var(&l.cpus, "cpus", 0, "CPU limit, a `NUMBER` such as 1.5")
	f.Int64Var(&l.cpuShares, "cpu-shares", 0, "relative CPU `WEIGHT`; 1024 corresponds to a request of one CPU")
	f.StringVar(&l.cpusetCPUs, "cpuset-cpus", "", "`CPUS` the container may use, such as 0-3")
	f.StringVar(&l.cpusetMems, "cpuset-mems", "", "NUMA `NODES` the container may use, such as 0-1")
	f.Int64Var(&l.oomScore, "oom-score-adj", 0, "OOM score adjustment, a `NUMBER` from -1000 to 1000")
	f.StringArrayVar(&l.hugepages, "hugepages", nil, "huge page limit as `SIZE=AMOUNT`, such as 2MB=64m")
	f.StringArrayVar(&l.unified, "unified", nil, "cgroup v2 setting as `KEY=VALUE`, such as pids.max=100")
}

// resources returns the limits as the CRI has them.
func (l *limitFlags) resources() (*runtimeapi.LinuxContainerResources, error) {
	if l.cpus < 0 {
		return nil, fmt.Errorf("--cpus %v: want a number above 0", l.cpus)
	}
	memory, memErr := parseMemory("--memory", l.memory)
	swap, swapErr := parseMemory("--memory-swap", l.memorySwap)
	unified, unifiedErr := parsePairs("--unified", l.unified)
	pages, pagesErr := parseHugepages(l.hugepages)
	if err := errors.Join(memErr, swapErr, unifiedErr, pagesErr); err != nil {
		return nil, err
	}
	if swap > 0 && swap < memory {
		return nil, fmt.Errorf("--memory-swap %s: less than --memory; want the limit of memory plus swap", l.memorySwap)
	}
	r := &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: memory, MemorySwapLimitInBytes: swap, CpuShares: l.cpuShares,
		CpusetCpus: l.cpusetCPUs, CpusetMems: l.cpusetMems, OomScoreAdj: l.oomScore, HugepageLimits: pages,
	}
	if len(unified) > 0 {
		r.Unified = unified
	}
	if l.cpus > 0 {
		r.CpuPeriod, r.CpuQuota = cpuPeriod, int64(l.cpus*cpuPeriod)
	}
	return r, nil
}

func parseHugepages(texts []string) ([]*runtimeapi.HugepageLimit, error) {
	var limits []*runtimeapi.HugepageLimit
	for _, text := range texts {
		size, amount, ok := strings.Cut(text, "=")
		if !ok || size == "" {
			return nil, fmt.Errorf("--hugepages %q: want SIZE=AMOUNT, such as 2MB=64m", text)
		}
		limit, err := strconv.ParseUint(amount, 10, 64)
		if err != nil {
			bytes, err := parseMemory("--hugepages", amount)
			if err != nil {
				return nil, err
			}
			limit = uint64(bytes) //nolint:gosec // never negative
		}
		limits = append(limits, &runtimeapi.HugepageLimit{PageSize: size, Limit: limit})
	}
	return limits, nil
}
