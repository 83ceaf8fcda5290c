package spec

import (
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Build makes the spec of a container. The request must have passed Validate.
func Build(_ Input) (*Output, error) { return nil, errdefs.ErrNotImplemented }

// Validate checks everything about a container that can be refused from the
// request alone.
func Validate(_ *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) error {
	return errdefs.ErrNotImplemented
}

// ValidateSandbox checks everything about a pod that can be refused from the
// request alone.
func ValidateSandbox(_ *runtimeapi.PodSandboxConfig) error { return errdefs.ErrNotImplemented }

// Process returns the process of an exec in a container whose first process
// is base.
func Process(_ *specs.Process, _ []string, _ bool) *specs.Process { return nil }

// Resources translates the limits of a request for an OCI runtime.
func Resources(_ *runtimeapi.LinuxContainerResources, _ Host) (*specs.LinuxResources, error) {
	return nil, errdefs.ErrNotImplemented
}

// MergeResources returns old with every value of update that is not empty.
func MergeResources(_, _ *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	return nil
}

// ReadHost finds out what this machine and the rights of this process allow.
func ReadHost() (Host, error) { return Host{}, errdefs.ErrNotImplemented }

// Modes are the namespaces that a container uses.
type Modes struct {
	Network, IPC, PID runtimeapi.NamespaceMode
	// TargetID is the container whose PID namespace is joined in mode TARGET.
	TargetID string
}

// ModesOf returns the namespace modes of a container: network and IPC are the
// pod's, PID is the container's own, or the pod's if the container names none.
func ModesOf(_ *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) Modes { return Modes{} }

// SignalNumber returns the signal with the given name ("SIGTERM", "TERM",
// "15", "RTMIN+3").
func SignalNumber(_ string) (syscall.Signal, error) { return 0, errdefs.ErrNotImplemented }

// SignalEnum returns the CRI value of a signal name, for ContainerStatus.
func SignalEnum(_ string) runtimeapi.Signal { return 0 }
