package hostcheck

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const areaRights = "rights"

func (f *facts) rights(root bool) {
	if !root {
		f.fail(areaRights, "user", fmt.Sprintf("uid %d", os.Geteuid()), "berthd runs as root; run: sudo berth check")
	} else {
		f.ok(areaRights, "user", "root")
	}
	effective, err := effectiveCapabilities()
	if err != nil {
		f.warn(areaRights, "capabilities", err.Error(), "mount /proc")
		return
	}
	for _, c := range []struct {
		bit    int
		name   string
		fatal  bool
		remedy string
	}{
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", true, "mounts and namespaces need it; run berthd on the host or in a privileged container"},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", true, "pod networks need it; run berthd on the host or in a privileged container"},
		{unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", false, "without it, negative OOM scores are raised to the daemon's own; add it to the bounding set of the service"},
	} {
		switch {
		case effective&(1<<c.bit) != 0:
			f.ok(areaRights, c.name, "present")
		case c.fatal:
			f.fail(areaRights, c.name, "absent", c.remedy)
		default:
			f.warn(areaRights, c.name, "absent", c.remedy)
		}
	}
}

func effectiveCapabilities() (uint64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	return 0, fmt.Errorf("/proc/self/status has no CapEff")
}

const areaSecurity = "security"

// security says which security modules pods may ask for.
func (f *facts) security() {
	text, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err == nil && strings.TrimSpace(string(text)) == "Y" {
		f.ok(areaSecurity, "AppArmor", "enabled")
	} else {
		f.info(areaSecurity, "AppArmor", "absent; the default profile is ignored with a warning, other profiles are refused")
	}
	text, err = os.ReadFile("/sys/fs/selinux/enforce")
	switch {
	case err != nil:
		f.info(areaSecurity, "SELinux", "absent; labels are ignored with a warning")
	case strings.TrimSpace(string(text)) == "1":
		f.ok(areaSecurity, "SELinux", "enforcing")
	default:
		f.ok(areaSecurity, "SELinux", "permissive")
	}
}
