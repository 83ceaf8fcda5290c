package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	kernelcap "github.com/containerd/containerd/v2/pkg/cap"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/apparmor"
	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/selinux"
)

// appArmorDefault is the profile of containers that name none, if it is loaded.
const appArmorDefault = apparmor.Default

// Host is what the spec depends on of the machine and of the daemon's own
// rights. ReadHost fills it; it is plain data and may be changed by the
// caller, for instance to clear what an OCI runtime cannot do.
type Host struct {
	// Name is the host name.
	Name string
	// Cgroup is the mode of the cgroup tree.
	Cgroup cgroup.Mode
	// CgroupOptions are the options of the v2 tree that a mount of it without a cgroup namespace must repeat to keep them.
	CgroupOptions []string
	// Controllers are the names of the controllers whose limits can be set.
	Controllers []string
	// SwapLimit tells whether swap is accounted and can be limited.
	SwapLimit bool
	// HugepageSizes are the sizes that can be limited, in kernel notation
	// ("2MB"); empty without a usable hugetlb controller.
	HugepageSizes []string
	// CPUs and MemoryNodes are those that the host can have, plugged in or not,
	// in the kernel's notation ("0-3,7"); empty if that is not known.
	CPUs, MemoryNodes string
	// Capabilities are those that the daemon can give to others, by name
	// ("CAP_CHOWN").
	Capabilities []string
	// MinOOMScoreAdj is the least oom_score_adj that the daemon may set.
	MinOOMScoreAdj int
	// RecursiveReadOnly tells whether recursively read-only mounts work: a fact
	// of the kernel, to be cleared for an OCI runtime without support.
	RecursiveReadOnly bool
	// NoUserNamespaces says why pods cannot have user namespaces of their own;
	// empty if they can. ReadHost leaves it empty: it takes an image store and an
	// OCI runtime to know.
	NoUserNamespaces string
	// Seccomp, AppArmor and SELinux tell which security modules are active.
	Seccomp, AppArmor, SELinux bool
	// AppArmorDefault is the AppArmor profile for containers that name none;
	// empty if there is none.
	AppArmorDefault string
	// AppArmorProfiles are the names of the loaded profiles, as the file
	// AppArmorList had them: profiles come and go, so when one is asked for
	// the file counts, unless there is none.
	AppArmorProfiles []string
	AppArmorList     string
}

// ReadHost finds out what this machine and the rights of this process allow.
func ReadHost() (Host, error) {
	cgroups, err := cgroup.Detect()
	if err != nil {
		return Host{}, err
	}
	host := Host{
		Cgroup:      cgroups.Mode,
		Controllers: cgroups.Controllers(),
		SwapLimit:   cgroups.SwapLimit(),
		Seccomp:     seccompSupported(),
		SELinux:     selinux.Enabled(),
	}
	host.RecursiveReadOnly = mountSetattrSupported()
	if host.Name, err = os.Hostname(); err != nil {
		return Host{}, fmt.Errorf("read the host name: %w", err)
	}
	if cgroups.Has("hugetlb") {
		if host.HugepageSizes, err = hugepageSizes("/sys/kernel/mm/hugepages"); err != nil {
			return Host{}, err
		}
	}
	if host.CPUs, err = readIDList("/sys/devices/system/cpu/possible"); err != nil {
		return Host{}, err
	}
	if host.MemoryNodes, err = readIDList("/sys/devices/system/node/possible"); err != nil {
		return Host{}, err
	}
	if host.Capabilities, err = ownCapabilities(); err != nil {
		return Host{}, err
	}
	if host.MinOOMScoreAdj, err = lowestOOMScoreAdj(host.Capabilities); err != nil {
		return Host{}, err
	}
	if cgroups.Mode == cgroup.V2 {
		if host.CgroupOptions, err = cgroupOptions(); err != nil {
			return Host{}, err
		}
	}
	if err := readAppArmor(&host, "/sys/module/apparmor/parameters/enabled", "/sys/kernel/security/apparmor/profiles"); err != nil {
		return Host{}, err
	}
	return host, nil
}

// cgroupOptions returns those options of the v2 tree that a mount without them would take from it.
func cgroupOptions() ([]string, error) {
	const root = "/sys/fs/cgroup"
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(root))
	if err != nil {
		return nil, fmt.Errorf("find the mount of %s: %w", root, err)
	}
	var options []string
	for _, mount := range mounts {
		for option := range strings.SplitSeq(mount.VFSOptions, ",") {
			if option == "nsdelegate" || option == "memory_recursiveprot" {
				options = append(options, option)
			}
		}
	}
	return options, nil
}

// ownCapabilities returns what this process can give to its children: what it
// has and its bounding set lets through.
func ownCapabilities() ([]string, error) {
	file, err := os.Open("/proc/self/status")
	if err != nil {
		return nil, fmt.Errorf("read own capabilities: %w", err)
	}
	defer file.Close() //nolint:errcheck // opened for reading only
	sets, err := kernelcap.ParseProcPIDStatus(file)
	if err != nil {
		return nil, fmt.Errorf("read own capabilities: %w", err)
	}
	// Numbers that have no name here are newer than any OCI runtime knows.
	names, _ := kernelcap.FromBitmap(sets[kernelcap.Bounding] & sets[kernelcap.Permitted])
	return sorted(names), nil
}

// lowestOOMScoreAdj returns the least score that may be set. Without
// CAP_SYS_RESOURCE the kernel does not say what that is; the present score of
// this process is always allowed.
func lowestOOMScoreAdj(capabilities []string) (int, error) {
	if slices.Contains(capabilities, "CAP_SYS_RESOURCE") {
		return minOOMScoreAdj, nil
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("read own OOM score: %w", err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("read own OOM score: %w", err)
	}
	return score, nil
}

// hugepageSizes lists the sizes that the kernel manages, smallest first, in
// the notation of control files: hugepages-2048kB is 2MB.
func hugepageSizes(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list huge page sizes: %w", err)
	}
	var kilobytes []uint64
	for _, entry := range entries {
		text, ok := strings.CutPrefix(entry.Name(), "hugepages-")
		text, isKB := strings.CutSuffix(text, "kB")
		size, err := strconv.ParseUint(text, 10, 64)
		if !ok || !isKB || err != nil {
			return nil, fmt.Errorf("list huge page sizes: %s/%s is not understood", dir, entry.Name())
		}
		kilobytes = append(kilobytes, size)
	}
	slices.Sort(kilobytes)
	var sizes []string
	for _, size := range kilobytes {
		unit := "K"
		for _, next := range []string{"M", "G", "T"} {
			if size%1024 != 0 || size < 1024 {
				break
			}
			size, unit = size/1024, next
		}
		sizes = append(sizes, fmt.Sprintf("%d%sB", size, unit))
	}
	return sizes, nil
}

// seccompSupported asks the kernel whether it has seccomp filters: with a nil
// program it answers EFAULT if so, EINVAL if not.
func seccompSupported() bool {
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0)
	return errors.Is(err, unix.EFAULT)
}

// mountSetattrSupported asks the kernel for mount_setattr (Linux 5.12), which
// makes mounts recursively read-only.
func mountSetattrSupported() bool {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	return !errors.Is(err, unix.ENOSYS)
}

// readAppArmor fills in the state of AppArmor from the kernel's two files.
func readAppArmor(host *Host, enabled, loaded string) error {
	data, err := os.ReadFile(enabled)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the state of AppArmor: %w", err)
	}
	if !strings.HasPrefix(string(data), "Y") {
		return nil
	}
	if host.AppArmorProfiles, err = loadedProfiles(loaded); err != nil {
		return err
	}
	host.AppArmor, host.AppArmorList = true, loaded
	if slices.Contains(host.AppArmorProfiles, appArmorDefault) {
		host.AppArmorDefault = appArmorDefault
	}
	return nil
}

// loadedProfiles reads the names of the loaded AppArmor profiles.
func loadedProfiles(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		// A line is "name (mode)", and the name may contain blanks.
		if i := strings.LastIndex(line, " ("); i > 0 {
			names = append(names, line[:i])
		}
	}
	return names, nil
}

// profileLoaded tells whether an AppArmor profile is loaded now.
func (h *Host) profileLoaded(name string) (bool, error) {
	if h.AppArmorList == "" {
		return slices.Contains(h.AppArmorProfiles, name), nil
	}
	names, err := loadedProfiles(h.AppArmorList)
	return slices.Contains(names, name), err
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}
