package spec_test

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/spec"
)

// TestSandbox: the container that stands for a pod has the pod's namespaces, and says what it is in containerd's words.
func TestSandbox(t *testing.T) {
	for name, c := range map[string]struct {
		mode runtimeapi.NamespaceMode
		file string // that names the PID namespace
		want *specs.LinuxNamespace
	}{
		"own":    {runtimeapi.NamespaceMode_CONTAINER, "/ns/pid", &specs.LinuxNamespace{Type: specs.PIDNamespace}},
		"shared": {runtimeapi.NamespaceMode_POD, "", &specs.LinuxNamespace{Type: specs.PIDNamespace}},
		"named":  {runtimeapi.NamespaceMode_POD, "/ns/pid", &specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/ns/pid"}},
		"node":   {runtimeapi.NamespaceMode_NODE, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := spec.BuildSandbox(spec.Input{
				SandboxID: "id", Rootfs: "/rootfs", Shm: "/shm", ResolvConf: "/resolv.conf", AllowedAnnotations: []string{"a.*"},
				Namespaces: spec.Paths{Net: "/ns/net", UTS: "/ns/uts", IPC: "/ns/ipc", PID: c.file},
				Pod: &runtimeapi.PodSandboxConfig{
					Metadata:    &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u"},
					Annotations: map[string]string{"a.b": "yes", "b.a": "no", "io.kubernetes.cri.container-type": "no"},
					Linux: &runtimeapi.LinuxPodSandboxConfig{
						Resources:       &runtimeapi.LinuxContainerResources{CpuQuota: 150000, CpuPeriod: 100000},
						SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: c.mode}},
					},
				},
			}, "/pause", nil)
			must(t, err)
			var pid *specs.LinuxNamespace
			for _, ns := range got.Linux.Namespaces {
				if ns.Type == specs.PIDNamespace {
					pid = &ns
				}
			}
			if (pid == nil) != (c.want == nil) || pid != nil && *pid != *c.want {
				t.Errorf("PID namespace: got %v, want %v", pid, c.want)
			}
			for key, want := range map[string]string{
				"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "id", "io.kubernetes.cri.sandbox-name": "web",
				"io.kubernetes.cri.sandbox-cpu-quota": "150000", "a.b": "yes", "b.a": "",
			} {
				if got := got.Annotations[key]; got != want {
					t.Errorf("annotation %s: got %q, want %q", key, got, want)
				}
			}
			if got.Process.Args[0] != "/pause" || got.Process.User.UID == 0 || got.Process.Capabilities != nil {
				t.Errorf("process: got %+v", got.Process)
			}
		})
	}
}

// TestAddOverhead: what has a limit gets what the sandbox takes on top, what has none stays without.
func TestAddOverhead(t *testing.T) {
	overhead := &runtimeapi.LinuxContainerResources{CpuPeriod: 50000, CpuQuota: 10000, CpuShares: 100, MemoryLimitInBytes: 1 << 20}
	got := spec.AddOverhead(&runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 30000, CpuShares: 500, MemoryLimitInBytes: 3 << 20,
	}, overhead)
	if got.CpuQuota != 50000 || got.CpuShares != 600 || got.MemoryLimitInBytes != 4<<20 {
		t.Errorf("got %v", got)
	}
	if got := spec.AddOverhead(nil, overhead); got.CpuQuota != 0 || got.CpuShares != 0 || got.MemoryLimitInBytes != 0 {
		t.Errorf("without limits: got %v", got)
	}
}
