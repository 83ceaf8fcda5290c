package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/warning"
)

const (
	// maxHostname is __NEW_UTS_LEN of the kernel.
	maxHostname = 64
	maxPort     = 65535
)

// ValidateSandbox checks everything about a pod that can be refused from the
// request alone, which is in canonical form. The error is of kind errdefs.ErrInvalidArgument and names
// field, value and reason.
func ValidateSandbox(pod *runtimeapi.PodSandboxConfig) error {
	if pod == nil {
		return invalid("config", "", "must be given")
	}
	if pod.GetMetadata().GetName() == "" {
		return invalid("metadata.name", "", "must not be empty")
	}
	m := pod.GetMetadata()
	err := errors.Join(checkName("metadata.name", m.GetName()), checkName("metadata.namespace", m.GetNamespace()), checkName("metadata.uid", m.GetUid()))
	if err != nil {
		return err
	}
	if name := pod.GetHostname(); len(name) > maxHostname {
		return invalid("hostname", name, fmt.Sprintf("is longer than the %d bytes that Linux allows", maxHostname))
	}
	if err := checkLine("hostname", pod.GetHostname()); err != nil {
		return err
	}
	if dir := pod.GetLogDirectory(); dir != "" {
		if err := errors.Join(checkAbsolute("log_directory", dir), checkElements("log_directory", dir)); err != nil {
			return err
		}
	}
	if err := checkSandboxBounds(pod); err != nil {
		return err
	}
	if err := validateDNS(pod.GetDnsConfig()); err != nil {
		return err
	}
	for i, port := range pod.GetPortMappings() {
		if err := validatePort(fmt.Sprintf("port_mappings[%d]", i), port); err != nil {
			return err
		}
	}
	if err := validateSandboxSecurity(pod.GetLinux().GetSecurityContext()); err != nil {
		return err
	}
	parent := pod.GetLinux().GetCgroupParent()
	if err := errors.Join(checkText("linux.cgroup_parent", parent), checkElements("linux.cgroup_parent", parent)); err != nil {
		return err
	}
	if hasDotDot(parent) {
		return invalid("linux.cgroup_parent", parent, "must not contain \"..\"")
	}
	return validateSysctls(pod)
}

// CheckSandbox refuses what the host cannot give to any container of the pod,
// so that RunPodSandbox fails instead of CreateContainer. The error is of kind
// errdefs.ErrFailedPrecondition.
func CheckSandbox(pod *runtimeapi.PodSandboxConfig, host Host) error {
	if _, _, ok := UserNamespace(pod); ok && host.NoUserNamespaces != "" {
		return unavailable("linux.security_context.namespace_options.userns_options.mode", "POD", host.NoUserNamespaces)
	}
	return nil
}

// SandboxWarnings are the unsupported parts of a pod's request that it runs without.
func SandboxWarnings(pod *runtimeapi.PodSandboxConfig, host Host) (warning.List, error) {
	var list warning.List
	sc := pod.GetLinux().GetSecurityContext()
	err := checkLabel(sc.GetSelinuxOptions(), host.SELinux || sc.GetPrivileged(), &list)
	return list, err
}

// checkLine refuses control characters, which could add lines to the files that
// a value is written to.
func checkLine(field, value string) error {
	for _, r := range value {
		if r < ' ' && r != '\t' || r == 0x7f {
			return invalid(field, value, "contains a control character")
		}
	}
	return nil
}

func validateDNS(dns *runtimeapi.DNSConfig) error {
	for _, list := range []struct {
		name   string
		values []string
	}{
		{"servers", dns.GetServers()}, {"searches", dns.GetSearches()}, {"options", dns.GetOptions()},
	} {
		for i, value := range list.values {
			field := fmt.Sprintf("dns_config.%s[%d]", list.name, i)
			if err := checkLine(field, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func validatePort(field string, port *runtimeapi.PortMapping) error {
	if _, ok := runtimeapi.Protocol_name[int32(port.GetProtocol())]; !ok {
		return invalid(field+".protocol", int32(port.GetProtocol()), "is unknown")
	}
	if err := checkRange(field+".host_port", int64(port.GetHostPort()), 0, maxPort); err != nil {
		return err
	}
	low := int64(0)
	if port.GetHostPort() > 0 {
		low = 1
	}
	if err := checkRange(field+".container_port", int64(port.GetContainerPort()), low, maxPort); err != nil {
		return err
	}
	if ip := port.GetHostIp(); ip != "" {
		if _, err := netip.ParseAddr(ip); err != nil {
			return invalid(field+".host_ip", ip, "is not an IP address")
		}
	}
	return nil
}

func validateSandboxSecurity(sc *runtimeapi.LinuxSandboxSecurityContext) error {
	const field = "linux.security_context"
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid(field+".run_as_group", sc.GetRunAsGroup().GetValue(), "needs run_as_user")
	}
	if err := checkRange(field+".run_as_user", sc.GetRunAsUser().GetValue(), 0, maxID); err != nil {
		return err
	}
	if err := checkRange(field+".run_as_group", sc.GetRunAsGroup().GetValue(), 0, maxID); err != nil {
		return err
	}
	options := sc.GetNamespaceOptions()
	for _, ns := range []struct {
		name string
		mode runtimeapi.NamespaceMode
	}{{"network", options.GetNetwork()}, {"ipc", options.GetIpc()}} {
		if ns.mode != modePod && ns.mode != modeNode {
			return invalid(field+".namespace_options."+ns.name, ns.mode.String(), "must be POD or NODE")
		}
	}
	switch options.GetPid() {
	case modePod, modeContainer, modeNode:
	default:
		return invalid(field+".namespace_options.pid", options.GetPid().String(), "must be POD, CONTAINER or NODE")
	}
	return validateUserns(field+".namespace_options.userns_options", options.GetUsernsOptions())
}

// sysctlName is what the kernel's names look like, with either separator. An
// element may be the name of an interface, hence the wide character set.
var sysctlName = regexp.MustCompile(`^[a-z0-9_-]+([./][A-Za-z0-9_:@*-]+)+$`)

// validateSysctls accepts the settings that belong to a namespace of the pod:
// any other would change the node, and those of a shared namespace too.
func validateSysctls(pod *runtimeapi.PodSandboxConfig) error {
	options := pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for name, value := range pod.GetLinux().GetSysctls() {
		field := "linux.sysctls"
		if !sysctlName.MatchString(name) {
			return invalid(field, name, "is not the name of a sysctl")
		}
		if strings.ContainsAny(value, "\x00\n") {
			return invalid(field+"."+name, value, "must be one line without NUL bytes")
		}
		reason := ""
		switch kind := sysctlNamespace(name); {
		case kind == "":
			reason = "does not belong to a namespace, setting it would change the node"
		case kind == "uts" && options.GetNetwork() == modeNode:
			reason = "cannot be set in the UTS namespace of the node"
		case kind == "net" && options.GetNetwork() == modeNode:
			reason = "cannot be set in the network namespace of the node"
		case kind == "ipc" && options.GetIpc() == modeNode:
			reason = "cannot be set in the IPC namespace of the node"
		}
		if reason != "" {
			return invalid(field, name, reason)
		}
	}
	return nil
}

// sysctlNamespace returns the kind of namespace that a sysctl belongs to, or
// "" if it is the whole node's.
func sysctlNamespace(name string) string {
	name = strings.ReplaceAll(name, "/", ".")
	switch {
	case strings.HasPrefix(name, "net."):
		return "net"
	case name == "kernel.domainname":
		return "uts"
	case strings.HasPrefix(name, "fs.mqueue."), name == "kernel.sem",
		strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"):
		return "ipc"
	default:
		return ""
	}
}
