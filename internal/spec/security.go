package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/warning"
)

const (
	localhostPrefix = "localhost/"

	// unconfinedDomain is the SELinux type of a process that SELinux does not
	// restrict.
	unconfinedDomain = "spc_t"
)

// DefaultMaskedPaths and DefaultReadonlyPaths protect the host from a
// container whose request has no security context at all. In any other
// request the lists apply as they are, empty ones included.
var (
	DefaultMaskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
		"/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	DefaultReadonlyPaths = []string{
		"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
	}
)

// applyPaths hides and protects paths of the kernel's file systems.
func applyPaths(sc *runtimeapi.LinuxContainerSecurityContext, linux *specs.Linux) {
	switch {
	case sc.GetPrivileged():
	case sc == nil:
		linux.MaskedPaths = slices.Clone(DefaultMaskedPaths)
		linux.ReadonlyPaths = slices.Clone(DefaultReadonlyPaths)
	default:
		linux.MaskedPaths = slices.Clone(sc.GetMaskedPaths())
		linux.ReadonlyPaths = slices.Clone(sc.GetReadonlyPaths())
	}
}

// appArmorProfile returns the name of the AppArmor profile to run under, empty
// for none. The field apparmor wins over the deprecated apparmor_profile.
func appArmorProfile(in Input) (string, error) {
	sc, host, warnings := in.Config.GetLinux().GetSecurityContext(), in.Host, in.warnings
	field := "linux.security_context.apparmor.localhost_ref"
	kind, ref := sc.GetApparmor().GetProfileType(), sc.GetApparmor().GetLocalhostRef()
	//nolint:staticcheck // kubelets of three releases back may send only the deprecated field
	if old := sc.GetApparmorProfile(); sc.GetApparmor() == nil && old != "" {
		field = "linux.security_context.apparmor_profile"
		switch {
		case old == "runtime/default":
		case old == "unconfined":
			kind = runtimeapi.SecurityProfile_Unconfined
		case strings.HasPrefix(old, localhostPrefix):
			kind, ref = runtimeapi.SecurityProfile_Localhost, old
		default:
			return "", invalid(field, old, "must be runtime/default, unconfined or localhost/<name>")
		}
	}
	if sc.GetPrivileged() {
		return "", nil
	}
	switch kind {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		//nolint:staticcheck // as above
		if asked := sc.GetApparmor() != nil || sc.GetApparmorProfile() != ""; asked && host.AppArmorDefault == "" {
			warnings.Add("linux.security_context.apparmor", kind, "is ignored: AppArmor is not enabled on this host, or its default profile is not loaded")
		}
		in.apply("apparmor_profile", host.AppArmorDefault)
		return host.AppArmorDefault, nil
	case runtimeapi.SecurityProfile_Unconfined:
		return "", nil
	case runtimeapi.SecurityProfile_Localhost:
	default:
		return "", invalid("linux.security_context.apparmor.profile_type", int32(kind), "is unknown")
	}
	name := strings.TrimPrefix(ref, localhostPrefix)
	switch {
	case name == "":
		return "", invalid(field, ref, "must name a profile")
	case !host.AppArmor:
		return "", unavailable(field, name, "AppArmor is not enabled on this host")
	}
	loaded, err := host.profileLoaded(name)
	if err != nil {
		return "", fmt.Errorf("%s %q: %w", field, name, err)
	}
	if !loaded {
		return "", unavailable(field, name, "no AppArmor profile of this name is loaded")
	}
	return name, nil
}

// checkSELinux adds a warning for a label on a host that has none. A request
// for no confinement is satisfied everywhere.
func checkSELinux(sc *runtimeapi.LinuxContainerSecurityContext, host Host, warnings *warning.List) error {
	return checkLabel(sc.GetSelinuxOptions(), sc.GetPrivileged() || host.SELinux, warnings)
}

// checkLabel is checkSELinux for a pod or a container; given tells that its label is what it asks for.
func checkLabel(options *runtimeapi.SELinuxOption, given bool, warnings *warning.List) error {
	const field = "linux.security_context.selinux_options"
	if options.GetUser() == "" && options.GetRole() == "" && options.GetType() == "" && options.GetLevel() == "" {
		return nil
	}
	for _, part := range []string{options.GetUser(), options.GetRole(), options.GetType(), options.GetLevel()} {
		if err := checkLine(field, part); err != nil {
			return err
		}
	}
	if !given && options.GetType() != unconfinedDomain {
		warnings.Add(field, strings.Join([]string{options.GetUser(), options.GetRole(), options.GetType(), options.GetLevel()}, ":"),
			"is ignored: SELinux is not enabled on this host, or its policy has no labels for containers")
	}
	return nil
}
