package spec

import (
	"math"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/ociruntime"
)

// Annotations of sandbox containers, as containerd writes them: a runtime sizes
// a virtual machine by those of resources.
const (
	annotationLogDirectory = "io.kubernetes.cri.sandbox-log-directory"
	annotationCPUPeriod    = "io.kubernetes.cri.sandbox-cpu-period"
	annotationCPUQuota     = "io.kubernetes.cri.sandbox-cpu-quota"
	annotationCPUShares    = "io.kubernetes.cri.sandbox-cpu-shares"
	annotationMemory       = "io.kubernetes.cri.sandbox-memory"
)

const (
	// sandboxOOMScoreAdj is the score of what all containers of a pod depend on.
	sandboxOOMScoreAdj = -998
	// sandboxUser runs the program of a sandbox container outside of a user namespace: one that images do not use.
	sandboxUser = math.MaxInt32
)

// BuildSandbox makes the spec of the container that stands for a pod in front of
// a runtime with sandboxes: it has the namespaces of the pod and runs a program of
// the root file system. Config and Image of the input are not used.
func BuildSandbox(in Input, program string, resources *runtimeapi.LinuxContainerResources) (*specs.Spec, error) {
	shared := in.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	pid := shared.GetPid()
	if pid == modePod && in.Namespaces.PID == "" {
		pid = modeContainer // the runtime lets others join that
	}
	in.Config = &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Network: shared.GetNetwork(), Ipc: shared.GetIpc(), Pid: pid},
		ReadonlyRootfs:   true,
	}}}
	linux := &specs.Linux{CgroupsPath: in.CgroupsPath, MountLabel: in.MountLabel, Sysctl: in.Sysctls}
	var err error
	if linux.Namespaces, err = namespaces(in); err != nil {
		return nil, err
	}
	if linux.Resources, err = Resources(resources, in.Host, nil); err != nil {
		return nil, err
	}
	user := specs.User{UID: sandboxUser, GID: sandboxUser}
	var mapped bool
	if linux.UIDMappings, linux.GIDMappings, mapped = UserNamespace(in.Pod); mapped {
		user = specs.User{UID: linux.UIDMappings[0].Size - 1, GID: linux.GIDMappings[0].Size - 1}
	}
	score := max(sandboxOOMScoreAdj, in.Host.MinOOMScoreAdj)
	return &specs.Spec{
		Version: choose(in.OCIVersion, defaultOCIVersion),
		Process: &specs.Process{
			Args: []string{program}, Cwd: "/", User: user, NoNewPrivileges: true, OOMScoreAdj: &score,
			ApparmorProfile: in.Host.AppArmorDefault, SelinuxLabel: in.ProcessLabel,
		},
		Root:        &specs.Root{Path: in.Rootfs, Readonly: true},
		Hostname:    in.Pod.GetHostname(),
		Mounts:      append(defaultMounts(in), podMounts(in)...),
		Annotations: sandboxAnnotations(in),
		Linux:       linux,
	}, nil
}

func sandboxAnnotations(in Input) map[string]string {
	result := podAnnotations(in)
	result[ociruntime.AnnotationContainerType] = ociruntime.ContainerTypeSandbox
	result[annotationLogDirectory] = in.Pod.GetLogDirectory()
	if r := in.Pod.GetLinux().GetResources(); r != nil {
		result[annotationCPUPeriod] = strconv.FormatInt(r.GetCpuPeriod(), 10)
		result[annotationCPUQuota] = strconv.FormatInt(r.GetCpuQuota(), 10)
		result[annotationCPUShares] = strconv.FormatInt(r.GetCpuShares(), 10)
		result[annotationMemory] = strconv.FormatInt(r.GetMemoryLimitInBytes(), 10)
	}
	return result
}

// AddOverhead returns the limits of a pod's sandbox: what its containers are
// given together, with what the sandbox itself takes. No limit stays none.
func AddOverhead(resources, overhead *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	sum := &runtimeapi.LinuxContainerResources{
		CpuPeriod: resources.GetCpuPeriod(), CpuQuota: resources.GetCpuQuota(),
		CpuShares: resources.GetCpuShares(), MemoryLimitInBytes: resources.GetMemoryLimitInBytes(),
	}
	if sum.CpuShares > 0 {
		sum.CpuShares += overhead.GetCpuShares()
	}
	if sum.CpuQuota > 0 && sum.CpuPeriod > 0 && overhead.GetCpuQuota() > 0 && overhead.GetCpuPeriod() > 0 {
		sum.CpuQuota += overhead.GetCpuQuota() * sum.CpuPeriod / overhead.GetCpuPeriod()
	}
	if sum.MemoryLimitInBytes > 0 {
		sum.MemoryLimitInBytes += overhead.GetMemoryLimitInBytes()
	}
	return sum
}
