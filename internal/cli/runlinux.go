package cli

import (
	"fmt"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maskedPaths and readonlyPaths are what kubelet asks to be hidden from, and
// protected in, a container that is not privileged.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// linux returns limits and rights of the container.
func (o *runOptions) linux() (*runtimeapi.LinuxContainerConfig, error) {
	r, err := o.resources()
	if err != nil {
		return nil, err
	}
	security, err := o.securityContext()
	if err != nil {
		return nil, err
	}
	return &runtimeapi.LinuxContainerConfig{Resources: r, SecurityContext: security}, nil
}

func (o *runOptions) securityContext() (*runtimeapi.LinuxContainerSecurityContext, error) {
	sc := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: o.namespaces(), Privileged: o.privileged, ReadonlyRootfs: o.readOnly,
		Seccomp:      &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		Capabilities: &runtimeapi.Capability{AddCapabilities: capabilities(o.capAdd), DropCapabilities: capabilities(o.capDrop)},
	}
	if o.privileged {
		sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	} else {
		sc.MaskedPaths, sc.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	if err := parseUser(o.user, sc); err != nil {
		return nil, err
	}
	for _, text := range o.groups {
		gid, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("--group-add %q: want a numeric GID", text)
		}
		sc.SupplementalGroups = append(sc.SupplementalGroups, int64(gid)) //nolint:gosec // 32 bits
	}
	for _, text := range o.security {
		if err := setSecurityOption(sc, text); err != nil {
			return nil, err
		}
	}
	return sc, nil
}

// capabilities takes the prefix off, which the CRI does not have.
func capabilities(names []string) []string {
	var out []string
	for _, name := range names {
		out = append(out, strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
	}
	return out
}
