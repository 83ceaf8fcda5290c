package spec

import (
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
	return validateOwnUserns(field+".userns_options", own.GetUsernsOptions(), pod)
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
	if ownCgroupNamespace(in) {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list, nil
}

// ownCgroupNamespace tells whether a container sees its own cgroup as the root of the tree. Version 1 has no such namespaces
// here, as with other runtimes.
func ownCgroupNamespace(in Input) bool {
	return in.Host.Cgroup == cgroup.V2 && !in.Config.GetLinux().GetSecurityContext().GetPrivileged()
}
