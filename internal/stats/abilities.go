package stats

import (
	"path/filepath"

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

// Detect finds out what the host keeps. On v2 some files exist only below the
// root, so at least one cgroup must have been made with all controllers.
func Detect(host *cgroup.Host) Abilities {
	unified := host.Mode == cgroup.V2
	root := func(controller string) string {
		dir, _ := host.Dir(controller, "/")
		return dir
	}
	a := Abilities{
		CPU: host.Has("cpu"), Memory: host.Has("memory"), IO: host.Has("blkio") || host.Has("io"), PIDs: host.Has("pids"),
	}
	a.MemoryPeak = a.Memory && (!unified || anywhere(root("memory"), "memory.peak"))
	a.Swap = a.Memory && (unified || anywhere(root("memory"), "memory.memsw.usage_in_bytes"))
	usage, peak := "hugetlb.*.usage_in_bytes", "hugetlb.*.max_usage_in_bytes"
	if unified {
		usage, peak = "hugetlb.*.current", "hugetlb.*.peak"
	}
	a.Hugetlb = host.Has("hugetlb") && anywhere(root("hugetlb"), usage)
	a.HugetlbPeak = a.Hugetlb && anywhere(root("hugetlb"), peak)
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
