package spec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
)

const (
	modePod       = runtimeapi.NamespaceMode_POD
	modeContainer = runtimeapi.NamespaceMode_CONTAINER
	modeNode      = runtimeapi.NamespaceMode_NODE
	modeTarget    = runtimeapi.NamespaceMode_TARGET
)

// Modes are the namespaces that a container uses.
type Modes struct {
	Network, IPC, PID runtimeapi.NamespaceMode
	// TargetID is the container whose PID namespace is joined in mode TARGET.
	TargetID string
}

// ModesOf returns the namespace modes of a container: network and IPC are the
// pod's, PID is the container's own, or the pod's if the container names none.
func ModesOf(config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) Modes {
	shared := pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	own := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if own == nil {
		own = shared
	}
	return Modes{
		Network:  shared.GetNetwork(),
		IPC:      shared.GetIpc(),
		PID:      own.GetPid(),
		TargetID: own.GetTargetId(),
	}
}

// Hostname returns the host name that the containers of a pod see.
func Hostname(pod *runtimeapi.PodSandboxConfig, host Host) string {
	network := pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork()
	if network == modeNode || pod.GetHostname() == "" {
		return host.Name
	}
	return pod.GetHostname()
}

// UserNamespace returns the ID mappings of a pod that has a user namespace of
// its own, and false for any other.
func UserNamespace(pod *runtimeapi.PodSandboxConfig) (uids, gids []specs.LinuxIDMapping, ok bool) {
	options := pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if options == nil || options.GetMode() != modePod {
		return nil, nil, false
	}
	return idMappings(options.GetUids()), idMappings(options.GetGids()), true
}

func idMappings(mappings []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var result []specs.LinuxIDMapping
	for _, m := range mappings {
		result = append(result, specs.LinuxIDMapping{
			ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength(),
		})
	}
	return result
}

// validateNamespaces checks that a container asks for no more than its pod
// was given. Network and IPC left at their zero value mean "as the pod".
func validateNamespaces(config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	const field = "linux.security_context.namespace_options"
	own := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	shared := pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for _, ns := range []struct {
		name     string
		own, pod runtimeapi.NamespaceMode
	}{{"network", own.GetNetwork(), shared.GetNetwork()}, {"ipc", own.GetIpc(), shared.GetIpc()}} {
		if ns.own != modePod && ns.own != ns.pod {
			return invalid(field+"."+ns.name, ns.own.String(), "differs from that of the sandbox, "+ns.pod.String())
		}
	}
	if err := checkPIDMode(field, own); err != nil {
		return err
	}
	userns := own.GetUsernsOptions()
	if err := validateUserns(field+".userns_options", userns); err != nil {
		return err
	}
	if _, _, ok := UserNamespace(pod); !ok && userns != nil && userns.GetMode() == modePod {
		return invalid(field+".userns_options.mode", userns.GetMode().String(), "needs a user namespace of the sandbox")
	}
	return nil
}

func checkPIDMode(field string, options *runtimeapi.NamespaceOption) error {
	switch options.GetPid() {
	case modePod, modeContainer, modeNode:
		return nil
	case modeTarget:
		if options.GetTargetId() == "" {
			return invalid(field+".target_id", "", "must name a container for pid mode TARGET")
		}
		return nil
	default:
		return invalid(field+".pid", int32(options.GetPid()), "is unknown")
	}
}

// validateUserns accepts no user namespace, that of the node, and one mapping
// of a range that contains ID 0.
func validateUserns(field string, options *runtimeapi.UserNamespace) error {
	if options == nil {
		return nil
	}
	switch options.GetMode() {
	case modeNode:
		if len(options.GetUids()) > 0 || len(options.GetGids()) > 0 {
			return invalid(field+".uids", options.GetUids(), "must be empty in mode NODE")
		}
		return nil
	case modePod:
	default:
		return invalid(field+".mode", options.GetMode().String(), "must be POD or NODE")
	}
	for _, list := range []struct {
		name     string
		mappings []*runtimeapi.IDMapping
	}{{"uids", options.GetUids()}, {"gids", options.GetGids()}} {
		if len(list.mappings) != 1 {
			return invalid(field+"."+list.name, fmt.Sprint(list.mappings), "must be exactly one mapping")
		}
		if m := list.mappings[0]; m.GetContainerId() != 0 || m.GetLength() == 0 {
			return invalid(field+"."+list.name, m.String(), "must map a range that begins with ID 0")
		}
	}
	return nil
}

// namespaces lists what the OCI runtime makes (no path) or joins (path).
func namespaces(in Input) ([]specs.LinuxNamespace, error) {
	modes := ModesOf(in.Config, in.Pod)
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	join := func(kind specs.LinuxNamespaceType, file, field string, mode runtimeapi.NamespaceMode) error {
		if file == "" {
			return unavailable("namespace_options."+field, mode.String(), "the sandbox has no such namespace to join")
		}
		list = append(list, specs.LinuxNamespace{Type: kind, Path: file})
		return nil
	}
	if modes.Network != modeNode {
		if err := join(specs.NetworkNamespace, in.Namespaces.Net, "network", modes.Network); err != nil {
			return nil, err
		}
		// A pod in the node's network shares its host name too.
		if err := join(specs.UTSNamespace, in.Namespaces.UTS, "network", modes.Network); err != nil {
			return nil, err
		}
	}
	if modes.IPC != modeNode {
		if err := join(specs.IPCNamespace, in.Namespaces.IPC, "ipc", modes.IPC); err != nil {
			return nil, err
		}
	}
	switch modes.PID {
	case modeContainer:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case modeNode:
	default:
		if err := join(specs.PIDNamespace, in.Namespaces.PID, "pid", modes.PID); err != nil {
			return nil, err
		}
	}
	if _, _, ok := UserNamespace(in.Pod); ok {
		if err := join(specs.UserNamespace, in.Namespaces.User, "userns_options", modePod); err != nil {
			return nil, err
		}
	}
	privileged := in.Config.GetLinux().GetSecurityContext().GetPrivileged()
	if in.Host.Cgroup == cgroup.V2 && !privileged {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list, nil
}
