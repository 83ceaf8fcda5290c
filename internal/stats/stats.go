// Package stats reads what a cgroup uses, in one pass over its control files
// and without caching: nothing is read between requests.
package stats

import "time"

// Container is the usage of one cgroup, of a container or of a whole pod.
// Figures that the host does not account are zero; whole groups of them that
// may be absent are pointers.
type Container struct {
	// At is when the reading began. It is never zero.
	At     time.Time
	CPU    CPU
	Memory Memory
	// Swap is nil on hosts that do not account swap.
	Swap *Swap
	// IO counts by device, in ascending order of device number.
	IO []IODevice
	// IOPressure is nil if the kernel keeps no pressure information for cgroups,
	// as on cgroup v1. The same holds for the other PSI pointers.
	IOPressure *PSI
	Pids       Pids
	Hugetlb    []Hugetlb
}

// CPU is consumed processor time.
type CPU struct {
	UsageNanos, UserNanos, SystemNanos uint64
	// Periods counts the periods of the CPU quota that have passed, Throttled
	// those in which the quota was used up.
	Periods, Throttled, ThrottledNanos uint64
	// Quota and Period are the limit in microseconds; Quota is 0 without one.
	Quota, Period uint64
	// Shares is the v1 weight, translated on v2.
	Shares   uint64
	Pressure *PSI
}

// Memory is memory in use, in bytes unless named otherwise.
type Memory struct {
	// Usage is everything charged, page cache included; WorkingSet is Usage
	// without what can be dropped at once; RSS is anonymous memory.
	Usage, WorkingSet, RSS uint64
	// Limit is 0 without one; Available is Limit less WorkingSet, 0 without a
	// limit.
	Limit, Available uint64
	// Peak is the highest Usage so far, 0 if the kernel does not keep it.
	Peak                      uint64
	Cache, MappedFile, Kernel uint64
	// PageFaults and MajorPageFaults are those of the cgroups below as well.
	// OwnPageFaults and OwnMajorPageFaults are not; v2 does not tell them apart.
	PageFaults, MajorPageFaults       uint64
	OwnPageFaults, OwnMajorPageFaults uint64
	FailCount, OOMEvents, OOMKilled   uint64
	Pressure                          *PSI
}

// Swap is swap in use, in bytes.
type Swap struct {
	Usage uint64
	// Limited tells whether there is a limit, which may be 0: no swap at all.
	// Limit and Available, which is Limit less Usage, mean nothing without.
	Limited          bool
	Limit, Available uint64
}

// IODevice is the traffic of one block device.
type IODevice struct {
	Major, Minor             uint64
	ReadBytes, WriteBytes    uint64
	ReadOps, WriteOps        uint64
	DiscardBytes, DiscardOps uint64
}

// Pids counts tasks, that is threads.
type Pids struct {
	// Tasks is the number of threads, Processes that of processes.
	Tasks, Processes uint64
	// Limit is 0 without one.
	Limit uint64
}

// Hugetlb is the use of huge pages of one size, in bytes.
type Hugetlb struct {
	// PageSize is in kernel notation ("2MB").
	PageSize    string
	Usage, Peak uint64
}

// PSI is pressure stall information: how long tasks waited for a resource.
type PSI struct {
	// Some counts the time in which at least one task waited, Full that in
	// which all did.
	Some, Full Pressure
}

// Pressure is one line of pressure stall information.
type Pressure struct {
	// TotalNanos is all time lost so far.
	TotalNanos uint64
	// Avg10, Avg60 and Avg300 are percentages over the last seconds.
	Avg10, Avg60, Avg300 float64
}
