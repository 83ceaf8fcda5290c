package stats

import (
	"fmt"

	"github.com/berth-runtime/berth/internal/cgroup"
)

// MemoryLimits are the limits of a cgroup itself, in bytes; 0 is none. Those of
// the cgroups above it, which the kernel heeds as well, are not in them.
type MemoryLimits struct {
	Limit uint64
	// Reservation is the soft limit of v1, memory.low of v2.
	Reservation uint64
	// Swap is what v1 allows to memory and swap together, and v2 to swap.
	Swap uint64
}

// ReadMemoryLimits reads what the cgroup at path may use. They are all 0 if the
// cgroup does not exist or the host has no memory controller.
func ReadMemoryLimits(host *cgroup.Host, path string) (MemoryLimits, error) {
	r := &reader{}
	dir, _ := host.Dir("memory", path)
	dir = cgroup.LimitDir(dir)
	files := [...]string{"memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.memsw.limit_in_bytes"}
	if host.Mode == cgroup.V2 {
		files = [...]string{"memory.max", "memory.low", "memory.swap.max"}
	}
	limits := MemoryLimits{
		Limit:       limit(r.number(dir, files[0])),
		Reservation: limit(r.number(dir, files[1])),
		Swap:        limit(r.number(dir, files[2])),
	}
	if r.err != nil {
		return MemoryLimits{}, fmt.Errorf("read limits of cgroup %s: %w", path, r.err)
	}
	return limits, nil
}
