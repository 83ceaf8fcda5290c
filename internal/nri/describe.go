package nri

import (
	"slices"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod describes a pod sandbox.
type Pod struct {
	ID      string
	Config  *runtimeapi.PodSandboxConfig
	Handler string
	// CgroupParent holds the cgroups of the containers, cgroupfs style.
	CgroupParent string
	// PID is the process that holds a shared PID namespace, else 0.
	PID int
	IPs []string
	// Namespaces are the files that pin those of the pod, by OCI type.
	Namespaces map[specs.LinuxNamespaceType]string
	// Overhead and Resources are what kubelet gives to the pod as a whole.
	Overhead, Resources *runtimeapi.LinuxContainerResources
}

// Container describes a container.
type Container struct {
	ID, PodID string
	Config    *runtimeapi.ContainerConfig
	// Spec is what the OCI runtime is given; nil if it is not known.
	Spec                             *specs.Spec
	State                            runtimeapi.ContainerState
	CreatedAt, StartedAt, FinishedAt time.Time
	// PID is the first process while it runs, else 0.
	PID             int
	ExitCode        int32
	Reason, Message string
	// ImageID is the digest of the image's configuration, ImageDigest a
	// repository digest ("name@sha256:…") if there is one.
	ImageID, ImageDigest string
}

// message is the pod as plugins get it.
func (p Pod) message() *api.PodSandbox {
	m := p.Config.GetMetadata()
	msg := &api.PodSandbox{
		Id: p.ID, Name: m.GetName(), Uid: m.GetUid(), Namespace: m.GetNamespace(),
		Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(),
		RuntimeHandler: p.Handler, Pid: pid(p.PID), Ips: p.IPs,
		Linux: &api.LinuxPodSandbox{
			CgroupParent: p.CgroupParent, PodOverhead: Limits(p.Overhead), PodResources: Limits(p.Resources),
		},
	}
	for kind, path := range p.Namespaces {
		if path != "" {
			msg.Linux.Namespaces = append(msg.Linux.Namespaces, &api.LinuxNamespace{Type: string(kind), Path: path})
		}
	}
	slices.SortFunc(msg.Linux.Namespaces, func(a, b *api.LinuxNamespace) int { return strings.Compare(a.GetType(), b.GetType()) })
	return msg
}

// message is the container as plugins get it.
func (c Container) message() *api.Container {
	msg := &api.Container{
		Id: c.ID, PodSandboxId: c.PodID, Name: c.Config.GetMetadata().GetName(), State: state(c.State),
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(), Pid: pid(c.PID),
		CreatedAt: nanoseconds(c.CreatedAt), StartedAt: nanoseconds(c.StartedAt), FinishedAt: nanoseconds(c.FinishedAt),
		ExitCode: c.ExitCode, StatusReason: c.Reason, StatusMessage: c.Message,
		Image: &api.Image{Name: imageName(c.Config), Digest: digest(c.ImageDigest), ConfigDigest: c.ImageID},
	}
	for _, d := range c.Config.GetCDIDevices() {
		msg.CDIDevices = append(msg.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	if c.Spec == nil {
		return msg
	}
	msg.Mounts, msg.Hooks = api.FromOCIMounts(c.Spec.Mounts), api.FromOCIHooks(c.Spec.Hooks)
	msg.Linux = linux(c.Spec)
	msg.Linux.SeccompProfile = seccompProfile(c.Config)
	p := c.Spec.Process
	if p == nil {
		return msg
	}
	msg.Args, msg.Env = slices.Clone(p.Args), slices.Clone(p.Env)
	msg.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
	for _, l := range p.Rlimits {
		msg.Rlimits = append(msg.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
	}
	return msg
}

// linux is the Linux section of a spec, with what the process section says of
// scheduling.
func linux(s *specs.Spec) *api.LinuxContainer {
	msg := &api.LinuxContainer{}
	if p := s.Process; p != nil {
		if p.OOMScoreAdj != nil {
			msg.OomScoreAdj = api.Int(*p.OOMScoreAdj)
		}
		msg.IoPriority, msg.Scheduler = api.FromOCILinuxIOPriority(p.IOPriority), api.FromOCILinuxScheduler(p.Scheduler)
	}
	l := s.Linux
	if l == nil {
		return msg
	}
	msg.Namespaces, msg.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
	msg.Resources, msg.CgroupsPath, msg.Sysctl = api.FromOCILinuxResources(l.Resources, nil), l.CgroupsPath, l.Sysctl
	msg.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	if l.Seccomp != nil {
		msg.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	if rdt := l.IntelRdt; rdt != nil {
		msg.Rdt = &api.LinuxRdt{
			ClosId: api.String(rdt.ClosID), Schemata: api.RepeatedString(rdt.Schemata), EnableMonitoring: api.Bool(rdt.EnableMonitoring),
		}
	}
	return msg
}

// seccompProfile is what the request asks for; NRI counts the profiles as the
// CRI does.
func seccompProfile(cfg *runtimeapi.ContainerConfig) *api.SecurityProfile {
	profile := cfg.GetLinux().GetSecurityContext().GetSeccomp()
	if profile == nil {
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
	}
	return &api.SecurityProfile{
		ProfileType: api.SecurityProfile_ProfileType(profile.GetProfileType()), LocalhostRef: profile.GetLocalhostRef(),
	}
}

func state(s runtimeapi.ContainerState) api.ContainerState {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return api.ContainerState_CONTAINER_CREATED
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return api.ContainerState_CONTAINER_RUNNING
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return api.ContainerState_CONTAINER_STOPPED
	case runtimeapi.ContainerState_CONTAINER_UNKNOWN:
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

func imageName(cfg *runtimeapi.ContainerConfig) string {
	if name := cfg.GetImage().GetUserSpecifiedImage(); name != "" {
		return name
	}
	return cfg.GetImage().GetImage()
}

// digest is the digest of a repository digest.
func digest(ref string) string {
	_, sum, _ := strings.Cut(ref, "@")
	return sum
}

func pid(n int) uint32 {
	return uint32(max(n, 0)) //nolint:gosec // a PID fits
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
