package pod

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/warning"
)

// Sandbox is an immutable view of a pod sandbox at one instant. What it points
// to is shared with other readers and must not be modified.
type Sandbox struct {
	// ID is 64 hexadecimal characters.
	ID string
	// Config is the request that made the sandbox, as it came.
	Config *runtimeapi.PodSandboxConfig
	// Handler is the runtime handler as it was asked for; "" is the default.
	Handler string
	// CreatedAt is when the request was accepted.
	CreatedAt time.Time
	// State is READY from the success of RunSandbox until a stop begins.
	State runtimeapi.PodSandboxState
	// IPs are the addresses of the pod, the primary first; none for host network.
	IPs []string
	// NetNS is the path of the pinned network namespace, "" for host network.
	NetNS string
	// CgroupParent is the pod's cgroup, cgroupfs style, from the mount root.
	CgroupParent string
	// PID is the process which holds a shared PID namespace, 0 without one.
	PID int
	// Overhead and Resources are what the pod as a whole was given last; nil if
	// nothing was.
	Overhead, Resources *runtimeapi.LinuxContainerResources
	// Problem says why a sandbox is not ready although no request stopped it, or
	// what its clean-up is waiting for.
	Problem string
	// Warnings are the unsupported parts of the request.
	Warnings warning.List
	// Defaults are the values that were given by default, by the key of the table [pod].
	Defaults map[string]string
	// Stage names the operation in flight, "" if there is none.
	Stage string
	// StageSince is when Stage began.
	StageSince time.Time
}

// Container is an immutable view of a container at one instant. What it points
// to is shared with other readers and must not be modified.
type Container struct {
	// ID is 64 hexadecimal characters.
	ID string
	// SandboxID is the sandbox that the container belongs to.
	SandboxID string
	// Config is the request that made the container, as it came.
	Config *runtimeapi.ContainerConfig
	// ImageID is the digest of the image's configuration.
	ImageID string
	// ImageRef is a repository digest of the image, or its ID if it has none.
	ImageRef string
	// State is what CRI calls it.
	State runtimeapi.ContainerState
	// CreatedAt, StartedAt and FinishedAt are zero for what has not happened.
	CreatedAt, StartedAt, FinishedAt time.Time
	// ExitCode is meaningful once State is EXITED.
	ExitCode int32
	// Reason is one word for people and kubelet: Completed, Error, OOMKilled,
	// StartError, Unknown.
	Reason string
	// Message explains Reason in a sentence.
	Message string
	// LogPath is absolute, "" if the container has no log.
	LogPath string
	// User is the effective user of the container's first process.
	User *runtimeapi.ContainerUser
	// StopSignal is the signal that a stop begins with.
	StopSignal runtimeapi.Signal
	// Resources are the limits in force.
	Resources *runtimeapi.LinuxContainerResources
	// PID is the container's first process while it runs, else 0.
	PID int
	// CgroupPath is the container's cgroup, cgroupfs style, from the mount root.
	CgroupPath string
	// SnapshotKey names the writable layer in the image store.
	SnapshotKey string
	// VolumeImages are the IDs of the images that are mounted, by container_path.
	VolumeImages map[string]string
	// Handler is the runtime handler of the sandbox; "" is the default.
	Handler string
	// Warnings are the unsupported parts of the request.
	Warnings warning.List
	// Defaults are the values that were given by default, by the key of the table [pod].
	Defaults map[string]string
	// Stage names the operation in flight, "" if there is none.
	Stage string
	// StageSince is when Stage began.
	StageSince time.Time
}

// Filter selects sandboxes or containers; what is zero does not restrict.
type Filter struct {
	// ID is a whole ID or a prefix of one.
	ID string
	// SandboxID is a whole ID or a prefix; for containers only.
	SandboxID string
	// Labels must all be there with these values.
	Labels map[string]string
	// SandboxState restricts sandboxes; nil is any.
	SandboxState *runtimeapi.PodSandboxState
	// ContainerState restricts containers; nil is any.
	ContainerState *runtimeapi.ContainerState
}

// Size is the size of a terminal in character cells.
type Size struct {
	Width, Height uint16
}
