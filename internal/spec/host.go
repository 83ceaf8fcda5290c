package spec

import (
	"github.com/berth-runtime/berth/internal/cgroup"
)

// Host is what the spec depends on of the machine and of the daemon's own
// rights. ReadHost fills it; it is plain data and may be changed by the
// caller, for instance to clear what an OCI runtime cannot do.
type Host struct {
	// Name is the host name.
	Name string
	// Cgroup is the mode of the cgroup tree.
	Cgroup cgroup.Mode
	// Controllers are the names of the controllers whose limits can be set.
	Controllers []string
	// SwapLimit tells whether swap is accounted and can be limited.
	SwapLimit bool
	// HugepageSizes are the sizes that can be limited, in kernel notation
	// ("2MB"); empty without a usable hugetlb controller.
	HugepageSizes []string
	// Capabilities are those that the daemon can give to others, by name
	// ("CAP_CHOWN").
	Capabilities []string
	// MinOOMScoreAdj is the least oom_score_adj that the daemon may set.
	MinOOMScoreAdj int
	// RecursiveReadOnly and IDMap tell whether recursively read-only and
	// id-mapped mounts work: a fact of the kernel, to be cleared for an OCI
	// runtime without support.
	RecursiveReadOnly, IDMap bool
	// Seccomp, AppArmor and SELinux tell which security modules are active.
	Seccomp, AppArmor, SELinux bool
	// AppArmorDefault is the AppArmor profile for containers that name none;
	// empty if there is none.
	AppArmorDefault string
	// AppArmorProfiles are the names of the loaded profiles.
	AppArmorProfiles []string
}
