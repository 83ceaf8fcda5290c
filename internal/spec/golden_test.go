package spec

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testHost is a host of the kind most clusters have.
func testHost(mode cgroup.Mode) Host {
	return Host{
		Name: "node", Cgroup: mode, SwapLimit: true, HugepageSizes: []string{"2MB", "1GB"},
		CPUs: "0-3,7", MemoryNodes: "0,3",
		Controllers:  []string{"cpu", "cpuset", "hugetlb", "io", "memory", "pids"},
		Capabilities: append(slices.Clone(defaultCapabilities), "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_TIME"),
		Seccomp:      true, RecursiveReadOnly: true,
	}
}

// testRoot makes a root file system with accounts and some host paths beside
// it, and returns the directory of both.
func testRoot(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"rootfs/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:\napp:x:1000:1000::/app:\nnogroup:x:1001:7777::/:\n",
		"rootfs/etc/group":  "root:x:0:\nwww-data:x:33:\nextra:x:50000:app,www-data\nadm:x:4:app\n",
		"volumes/a/file":    "",
		"volumes/b/file":    "",
		"hosts":             "",
		"profile.json":      `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`,
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(root, "volumes/link")); err != nil {
		t.Fatal(err)
	}
	return root
}

// testInput is the least request: a container with a command in an ordinary
// pod.
func testInput(t testing.TB) Input {
	t.Helper()
	root := testRoot(t)
	return Input{
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
			Image:    &runtimeapi.ImageSpec{Image: "sha256:1111", UserSpecifiedImage: "web:1"},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources:       &runtimeapi.LinuxContainerResources{},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{},
			},
		},
		Pod: &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: "uid-1"},
			Hostname:     "pod-host",
			LogDirectory: "/var/log/pods/x",
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: modeContainer},
			}},
		},
		ContainerID: "c1", SandboxID: "s1",
		Image:  ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"default"}, Env: []string{"PATH=/bin", "LANG=C"}},
		Rootfs: filepath.Join(root, "rootfs"),
		Namespaces: Paths{
			Net: "/run/ns/net", IPC: "/run/ns/ipc", UTS: "/run/ns/uts", PID: "/run/ns/pid", User: "/run/ns/user",
		},
		Shm: "/run/shm", ResolvConf: "/run/resolv.conf", Hostname: "/run/hostname", Hosts: "/run/hosts",
		CgroupsPath: "/kubepods/pod1/c1",
		Host:        testHost(cgroup.V2),
	}
}

// goldens are requests that together use every field.
var goldens = []struct {
	name   string
	change func(in *Input, root string)
}{
	{"least", func(in *Input, _ string) { in.Config.Linux = nil }},
	{"kubelet", kubelet},
	{"kubelet-v1", func(in *Input, root string) {
		kubelet(in, root)
		in.Host = testHost(cgroup.Hybrid)
		in.Host.MinOOMScoreAdj = 0
		in.Config.Linux.Resources.OomScoreAdj = -997
		in.Config.Linux.Resources.Unified = map[string]string{"memory.min": "0", "memory.low": "0", "memory.high": "max"}
	}},
	{"privileged", func(in *Input, root string) {
		kubelet(in, root)
		in.Pod.Linux.SecurityContext.Privileged = true
		in.Config.Linux.SecurityContext.Privileged = true
		in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/dev", HostPath: "/dev"}}
	}},
	{"node-namespaces", func(in *Input, _ string) {
		options := &runtimeapi.NamespaceOption{Network: modeNode, Ipc: modeNode, Pid: modeNode}
		in.Pod.Linux.SecurityContext.NamespaceOptions = options
		in.Config.Linux.SecurityContext.NamespaceOptions = options
	}},
	{"user-namespace-of-a-pod-on-the-node", func(in *Input, _ string) {
		ids := []*runtimeapi.IDMapping{{HostId: 100000, Length: 5}}
		options := &runtimeapi.NamespaceOption{
			Network: modeNode, Pid: modeNode, UsernsOptions: &runtimeapi.UserNamespace{Uids: ids, Gids: ids},
		}
		in.Pod.Linux.SecurityContext.NamespaceOptions = options
		in.Config.Linux.SecurityContext.NamespaceOptions = options
	}},
	{"user-namespace", func(in *Input, root string) {
		ids := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
		in.Pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: ids, Gids: ids}
		in.Mapped = map[int]string{0: filepath.Join(root, "volumes/b")}
		in.Config.Mounts = []*runtimeapi.Mount{{
			ContainerPath: "/data", HostPath: filepath.Join(root, "volumes/a"), UidMappings: ids, GidMappings: ids,
		}}
	}},
}

// kubelet changes a request to what kubelet sends for a pod with all the
// trimmings.
func kubelet(in *Input, root string) {
	in.Config.Command = []string{"/bin/server"}
	in.Config.Args = []string{"--port", "80"}
	in.Config.WorkingDir = "/srv/../app"
	in.Config.Tty = true
	in.Config.StopSignal = runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3
	in.Config.Envs = []*runtimeapi.KeyValue{{Key: "LANG", Value: []byte("de")}, {Key: "EMPTY"}}
	in.Config.LogPath = "web/0.log"
	in.Config.Annotations = map[string]string{"run.oci.handler": "wasm"}
	in.Config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/data/deep/er", HostPath: filepath.Join(root, "volumes/b"), Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/data/", HostPath: filepath.Join(root, "volumes/link"), Readonly: true, MountOptions: []string{"noexec", "nosuid"}},
		{ContainerPath: "/etc/hosts", HostPath: filepath.Join(root, "hosts")},
		{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: "sha256:2222"}, Readonly: true},
	}
	in.ImageVolumes = map[string]string{"/image": "/run/volumes/2222"}
	in.Config.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/nothing", HostPath: "/dev/null", Permissions: "rw"}}
	in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 204, MemoryLimitInBytes: 128 << 20, OomScoreAdj: 999,
		CpusetCpus: "0-3,7", CpusetMems: "0",
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}, {PageSize: "64KB"}},
		Unified: map[string]string{
			"memory.min": "0", "memory.low": "0", "memory.oom.group": "1", "memory.swap.max": "0", "pids.max": "100",
		},
	}
	in.Config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: modeContainer},
		RunAsUser:        &runtimeapi.Int64Value{Value: 1000}, RunAsGroup: &runtimeapi.Int64Value{Value: 2000},
		SupplementalGroups: []int64{1234}, ReadonlyRootfs: true, NoNewPrivs: true,
		MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		Seccomp:      &runtimeapi.SecurityProfile{},
		Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"net_admin"}, DropCapabilities: []string{"MKNOD", "CAP_CHOWN"}},
	}
}

// TestGolden compares whole specs with files: review their difference when it
// fails, and accept it with go test ./internal/spec -update.
func TestGolden(t *testing.T) {
	for _, golden := range goldens {
		t.Run(golden.name, func(t *testing.T) {
			in := testInput(t)
			root := filepath.Dir(in.Rootfs)
			golden.change(&in, root)
			out, err := Build(t.Context(), in)
			if err != nil {
				t.Fatalf("Build: %v", err)
			}
			got := render(t, out, root)
			file := filepath.Join("testdata", golden.name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v: make it with -update", err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the spec differs from %s:\n%s", file, firstDifference(string(got), string(want)))
			}
		})
	}
}

// render writes an output as JSON without what depends on the machine: the
// directory of the test, the devices of the host, the library's seccomp rules.
func render(t *testing.T, out *Output, root string) []byte {
	t.Helper()
	if seccomp := out.Spec.Linux.Seccomp; seccomp != nil {
		out.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: seccomp.DefaultAction}
	}
	out.Spec.Linux.Devices = slices.DeleteFunc(out.Spec.Linux.Devices, func(d specs.LinuxDevice) bool {
		return d.Path != "/dev/nothing"
	})
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.ReplaceAll(data, []byte(root), []byte("/TEST")), '\n')
}

// firstDifference shows where two texts part.
func firstDifference(got, want string) string {
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			from := max(0, i-4)
			return "got:\n" + strings.Join(a[from:min(len(a), i+4)], "\n") + "\nwant:\n" + strings.Join(b[from:min(len(b), i+4)], "\n")
		}
	}
	return "one ends before the other"
}
