package stats

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/cgroup"
)

// Abilities tells which figures a host keeps. What it does not keep is zero, or
// nil, wherever it is read.
type Abilities struct {
	// CPU, Memory, IO and PIDs are the controllers; time is accounted without
	// the first of them too.
	CPU, Memory, IO, PIDs bool
	// MemoryPeak is the highest use of memory; v2 keeps it since Linux 5.19.
	MemoryPeak bool
	// Swap is accounted everywhere but on v1 hosts whose command line forbids.
	Swap bool
	// Hugetlb is the use of huge pages; HugetlbPeak the highest, known to v1.
	Hugetlb, HugetlbPeak bool
	// Pressure needs a v2 hierarchy, alone or beside those of v1, in a kernel
	// with pressure stall information.
	Pressure bool
}

// Detect finds out what the host keeps. On v2 a file that exists only below
// the root may have no cgroup yet to be in; then the kernel's version decides.
func Detect(host *cgroup.Host) Abilities {
	unified := host.Mode == cgroup.V2
	root := func(controller string) string {
		dir, _ := host.Dir(controller, "/")
		return dir
	}
	a := Abilities{
		CPU: host.Has("cpu"), Memory: host.Has("memory"), IO: host.Has("blkio") || host.Has("io"), PIDs: host.Has("pids"),
	}
	a.MemoryPeak = a.Memory && (!unified || anywhere(root("memory"), "memory.peak") || atLeast(5, 19))
	a.Swap = a.Memory && (unified || anywhere(root("memory"), "memory.memsw.usage_in_bytes"))
	a.Hugetlb = host.Has("hugetlb")
	a.HugetlbPeak = a.Hugetlb && (!unified || anywhere(root("hugetlb"), "hugetlb.*.peak"))
	if dir, ok := host.Unified("/"); ok {
		a.Pressure = pressureKept(dir)
	}
	return a
}

// pressureKept tells whether a pressure file can be read: with psi=0 on the
// kernel's command line there are such files, but reading them is refused.
func pressureKept(root string) bool {
	for _, pattern := range []string{"cpu.pressure", "*/cpu.pressure"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			continue
		}
		text, err := readFile(files[0])
		return err == nil && text != ""
	}
	return false
}

// atLeast tells whether the kernel is of this version or a later one.
func atLeast(major, minor int) bool {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return false
	}
	var gotMajor, gotMinor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &gotMajor, &gotMinor); err != nil {
		return false
	}
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}

// anywhere tells whether a file matches in a root cgroup or right below it.
func anywhere(root, pattern string) bool {
	if root == "" {
		return false
	}
	for _, depth := range []string{"", "*"} {
		files, err := filepath.Glob(filepath.Join(root, depth, pattern))
		if err == nil && len(files) > 0 {
			return true
		}
	}
	return false
}
