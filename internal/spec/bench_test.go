package spec_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/spec"
	"github.com/berth-runtime/berth/test/leakcheck"
)

const runDeadline = 60 * time.Second

var ociRuntimes = []string{"runc", "crun"}

// bench is a pod without an engine: pinned namespaces, a root file system of
// busybox, and a place for bundles.
type bench struct {
	t       *testing.T
	runtime string
	dir     string
	host    spec.Host
	cgroups *cgroup.Host
	paths   namespace.Paths
	pod     *runtimeapi.PodSandboxConfig
}

// onEach runs a test with each OCI runtime.
func onEach(t *testing.T, run func(b *bench)) {
	for _, name := range ociRuntimes {
		t.Run(name, func(t *testing.T) { run(newBench(t, name)) })
	}
}

func newBench(t *testing.T, runtime string) *bench {
	leakcheck.Check(t)
	dir := leakcheck.Dir(t) // the cgroup of the pod carries its name
	b := &bench{t: t, runtime: runtime, dir: dir}
	var err error
	b.cgroups, err = cgroup.Detect()
	must(t, err)
	b.needHugetlb()
	b.host, err = spec.ReadHost()
	must(t, err)
	b.makeRootfs()
	must(t, os.MkdirAll(filepath.Join(dir, "shm"), 0o1777))
	must(t, unix.Mount("shm", filepath.Join(dir, "shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=1m"))
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(dir, "shm"), unix.MNT_DETACH)) })
	ns := filepath.Join(dir, "ns")
	b.paths, err = namespace.Create(t.Context(), namespace.Request{Dir: ns, Net: true, IPC: true, UTS: true, Hostname: "smoke"})
	must(t, err)
	t.Cleanup(func() { must(t, namespace.Remove(context.Background(), ns)) })
	must(t, os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver 192.0.2.53\n"), 0o644))
	b.pod = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "ns", Uid: "uid"}, Hostname: "smoke",
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			Privileged: true, NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	return b
}

// needHugetlb mounts the hugetlb controller as v1 where it would be left on
// the v2 hierarchy of a hybrid host: crun before 1.9 refuses such a host.
func (b *bench) needHugetlb() {
	const dir = "/sys/fs/cgroup/hugetlb"
	if b.cgroups.Mode != cgroup.Hybrid || b.cgroups.Has("hugetlb") {
		return
	}
	must(b.t, os.MkdirAll(dir, 0o755))
	if err := unix.Mount("cgroup", dir, "cgroup", 0, "hugetlb"); err != nil && !errors.Is(err, syscall.EBUSY) {
		b.t.Fatalf("mount the hugetlb controller: %v", err)
	}
	var err error
	b.cgroups, err = cgroup.Detect()
	must(b.t, err)
}

func (b *bench) makeRootfs() {
	root := filepath.Join(b.dir, "rootfs")
	for _, dir := range []string{"bin", "etc", "tmp", "proc", "sys", "dev"} {
		must(b.t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	program, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		b.t.Fatalf("read busybox (install busybox-static): %v", err)
	}
	must(b.t, os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755))
	for _, name := range []string{"sh", "id", "cat", "grep", "hostname", "touch", "mount", "ls", "pwd", "echo", "head", "stat", "mkdir", "umount", "chmod", "env", "tail", "sleep"} {
		must(b.t, os.Link(filepath.Join(root, "bin/busybox"), filepath.Join(root, "bin", name)))
	}
	must(b.t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"), 0o644))
	must(b.t, os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nextra:x:50000:user\n"), 0o644))
}

// input makes the input for a container that runs a shell script.
func (b *bench) input(script string) spec.Input {
	return spec.Input{
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
			Image:    &runtimeapi.ImageSpec{Image: "sha256:0"},
			Command:  []string{"/bin/sh", "-c", script},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		},
		Pod: b.pod, ContainerID: "c-" + strings.ToLower(rand.Text()[:12]), SandboxID: "s",
		Image: ocispec.ImageConfig{}, Rootfs: filepath.Join(b.dir, "rootfs"),
		Namespaces: spec.Paths{Net: b.paths.Net, IPC: b.paths.IPC, UTS: b.paths.UTS},
		Shm:        filepath.Join(b.dir, "shm"), ResolvConf: filepath.Join(b.dir, "resolv.conf"), Host: b.host,
	}
}

// run builds the spec, runs it to its end and returns what it printed and its
// exit code.
func (b *bench) run(in spec.Input) (output string, code int) {
	b.t.Helper()
	parent := "/berth-" + filepath.Base(b.dir)
	_, path, err := cgroup.ContainerPath(cgroup.Cgroupfs, parent, in.ContainerID)
	must(b.t, err)
	in.CgroupsPath = path
	out, err := spec.Build(b.t.Context(), in)
	if err != nil {
		b.t.Fatalf("Build: %v", err)
	}
	bundle := filepath.Join(b.dir, "bundle-"+in.ContainerID)
	must(b.t, os.Mkdir(bundle, 0o755))
	data, err := json.Marshal(out.Spec)
	must(b.t, err)
	must(b.t, os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644))
	ctx, cancel := context.WithTimeout(b.t.Context(), runDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.runtime, "--root", filepath.Join(b.dir, "state"), "run", "--bundle", bundle, in.ContainerID)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatalf("run %s: %v: %s", b.runtime, err, text)
	}
	must(b.t, errors.Join(b.cgroups.KillAll(ctx, parent), b.cgroups.Remove(parent)))
	return string(text), cmd.ProcessState.ExitCode()
}

// facts runs a script that prints lines "key=value" and returns them.
func (b *bench) facts(in spec.Input) map[string]string {
	b.t.Helper()
	output, code := b.run(in)
	if code != 0 {
		b.t.Fatalf("%s: exit code %d: %s", b.runtime, code, output)
	}
	facts := map[string]string{}
	for line := range strings.Lines(output) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		facts[key] = value
	}
	return facts
}

func (b *bench) expect(facts, want map[string]string) {
	b.t.Helper()
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if facts[key] != want[key] {
			b.t.Errorf("%s: got %q, want %q", key, facts[key], want[key])
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
