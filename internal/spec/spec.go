// Package spec turns a CRI request and the configuration of an image into the
// OCI runtime spec of a container.
//
// Its functions hold no state. Build looks at the host only where the request
// points to it: at mount sources, devices, seccomp profiles, and at
// /etc/passwd and /etc/group below the root file system of the container,
// never through links that leave it. What the host can do is a value, Host,
// so that the same request gives the same spec wherever a test runs.
//
// Errors name the field, the value and the reason. A request that is wrong in
// itself is errdefs.ErrInvalidArgument; one that is right but asks for what
// this host cannot give is errdefs.ErrFailedPrecondition.
package spec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/warning"
)

// Paths are files that pin the namespaces of a pod. A field is empty if the
// pod has no such namespace of its own.
type Paths struct {
	Net, IPC, UTS string
	// PID is the namespace to join in the modes POD and TARGET: that of the
	// pod's infra process or of the target container.
	PID string
	// User is the namespace of a pod with user namespace mode POD.
	User string
}

// Volume is a directory for a volume that an image declares.
type Volume struct {
	// Path is where the image wants it; Source is the directory on the host.
	Path, Source string
}

// Input is everything that decides about a spec.
type Input struct {
	Config *runtimeapi.ContainerConfig
	Pod    *runtimeapi.PodSandboxConfig

	ContainerID, SandboxID string
	// Sandboxed: the container runs in the sandbox of the container that stands for its pod, see BuildSandbox.
	Sandboxed bool
	// Image is the configuration of the image that the container runs.
	Image ocispec.ImageConfig
	// Rootfs is the directory where the root file system of the container is
	// mounted, now and when the container starts.
	Rootfs string
	// ImageVolumes maps the container_path of each mount of an image to the
	// path on the host where that image, or the wanted part of it, is.
	ImageVolumes map[string]string

	// Mapped maps the index of each mount that has mappings to the path on the
	// host where its source is mounted with them. Images are in ImageVolumes.
	Mapped map[int]string

	// Volumes are those that the image declares.
	Volumes []Volume

	Namespaces Paths
	// Shm is the tmpfs of the pod for /dev/shm; unused with the IPC namespace
	// of the node.
	Shm string
	// ResolvConf, Hostname and Hosts are files of the pod that become
	// /etc/resolv.conf, /etc/hostname and /etc/hosts, unless the request
	// mounts something there. An empty one is left out.
	ResolvConf, Hostname, Hosts string
	// Localtime is a file of the pod that becomes /etc/localtime, for the time zone Timezone.
	Localtime, Timezone string

	// ProcessLabel and MountLabel are the SELinux labels of the process and of
	// its files; empty without SELinux.
	ProcessLabel, MountLabel string

	// Defaults are what the request leaves open; nil means those of the zero value.
	Defaults *Defaults
	// Sysctls are those of the pod, with the defaults. BuildSandbox uses them.
	Sysctls map[string]string
	// Passwd is where the caller writes Output.Passwd to before the container starts.
	Passwd string
	// NoHostDevices keeps the devices of the host from privileged containers; AllDevices lets them use all devices all the same.
	NoHostDevices, AllDevices bool
	// CgroupWritable lets containers with a cgroup namespace of their own change their cgroups.
	CgroupWritable bool

	// CgroupsPath is as cgroup.ContainerPath gives it for OCI.
	CgroupsPath string
	Host        Host
	// InjectCDI adds devices of the Container Device Interface, by their fully
	// qualified names, to a spec. Nil means that there are none.
	InjectCDI func(result *specs.Spec, names []string) error
	// OCIVersion is the version of the spec that the OCI runtime understands;
	// empty means 1.0.2, which all of them do.
	OCIVersion string
	// AllowedAnnotations are patterns of those annotations of the pod and of the
	// container that are passed on to the OCI runtime.
	AllowedAnnotations []string

	// warnings collects what the host cannot fully give; Build returns it.
	warnings *warning.List
	// applied collects the defaults that the container gets; Build returns it.
	applied map[string]string
}

// Output is a spec with what else the request and the image decide.
type Output struct {
	Spec *specs.Spec
	// User is the identity of the first process, for ContainerStatus.
	User *runtimeapi.ContainerUser
	// StopSignal is the name of the signal that asks the container to end
	// ("SIGTERM"); SignalNumber and SignalEnum translate it.
	StopSignal string
	// Warnings are the unsupported parts of the request, which are accepted.
	Warnings warning.List
	// Passwd is /etc/passwd with an entry for the user; nil if that of the image is used.
	Passwd *PasswdFile
	// Defaults are the values that the container got by default, by the key of the table [pod].
	Defaults map[string]string
}
