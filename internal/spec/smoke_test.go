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
	"strconv"
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
	"github.com/berth-runtime/berth/test/census"
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
	dir, err := os.MkdirTemp("/tmp", "b")
	must(t, err)
	// The cgroup of the pod carries the name of the directory.
	census.Check(t, dir, filepath.Base(dir))
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	b := &bench{t: t, runtime: runtime, dir: dir}
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
	for _, name := range []string{"sh", "id", "cat", "grep", "hostname", "touch", "mount", "ls", "pwd", "echo", "head", "stat", "mkdir", "umount", "chmod", "env", "tail"} {
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
	out, err := spec.Build(in)
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

// TestRunOrdinary runs a container as a Deployment would have it and looks
// from inside at everything that was asked for.
func TestRunOrdinary(t *testing.T) {
	onEach(t, func(b *bench) {
		volume := filepath.Join(b.dir, "volume")
		must(t, os.Mkdir(volume, 0o755))
		must(t, os.WriteFile(filepath.Join(volume, "file"), []byte("content\n"), 0o644))
		must(t, os.Symlink(volume, filepath.Join(b.dir, "link")))
		in := b.input(`
echo "id=$(id -u):$(id -g):$(id -G)"
echo "pwd=$(pwd)"
echo "hostname=$(hostname):$HOSTNAME"
echo "env=$FOO:$BAR"
grep -E '^(CapBnd|CapEff|CapAmb|CapInh|Seccomp|NoNewPrivs):' /proc/self/status | while read k v; do echo "${k%:}=$v"; done
echo "pid=$$"
echo "oom=$(cat /proc/self/oom_score_adj)"
echo "resolv=$(cat /etc/resolv.conf)"
echo "volume=$(cat /data/file)"
echo "volume-ro=$(touch /data/new 2>&1)"
echo "rootfs=$(touch /x 2>&1)"
echo "version=$(stat -c %t,%T /proc/version)"
echo "sysctl=$(echo 1 2>&1 > /proc/sys/kernel/dmesg_restrict; echo $?)"
echo "masked=$(/bin/ls / 2>&1)"
touch /dev/shm/ok && echo "shm=$(grep -c ' /dev/shm tmpfs ' /proc/self/mounts)"
echo "mqueue=$(grep -c ' /dev/mqueue mqueue ' /proc/self/mounts)"
echo "null=$(echo gone > /dev/null && echo ok)"
c=/sys/fs/cgroup
for f in memory.limit_in_bytes memory.memsw.limit_in_bytes cpu.shares cpu.cfs_quota_us cpuset.cpus pids.max memory.max cpu.max; do
  d=${f%%.*}
  for p in $c/$f $c/$d/$f; do [ -e $p ] && echo "$f=$(cat $p)"; done
done
true
`)
		in.Config.WorkingDir = "/made/by/runtime"
		in.Config.Envs = []*runtimeapi.KeyValue{{Key: "FOO", Value: []byte("new")}}
		in.Image.Env = []string{"FOO=old", "BAR=image"}
		in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: filepath.Join(b.dir, "link"), Readonly: true}}
		linux := in.Config.Linux
		linux.Resources = &runtimeapi.LinuxContainerResources{
			CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500,
			CpusetCpus: "0", Unified: map[string]string{"memory.min": "0", "memory.low": "0", "pids.max": "77"},
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "16GB"}},
		}
		sc := linux.SecurityContext
		sc.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		sc.SupplementalGroups = []int64{1234}
		sc.ReadonlyRootfs = true
		sc.Seccomp = &runtimeapi.SecurityProfile{}
		sc.NoNewPrivs = true
		sc.MaskedPaths = []string{"/bin/ls", "/proc/version"}
		sc.ReadonlyPaths = []string{"/proc/sys"}
		sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		facts := b.facts(in)
		b.expect(facts, map[string]string{
			"id": "1000:1000:1000 1234 50000", "pwd": "/made/by/runtime", "hostname": "smoke:smoke", "env": "new:image",
			"CapBnd": "0000000000000400", "CapEff": "0000000000000400", "CapAmb": "0000000000000400",
			"Seccomp": "2", "NoNewPrivs": "1", "pid": "1", "oom": "500",
			"resolv": "nameserver 192.0.2.53", "volume": "content", "rootfs": "touch: /x: Read-only file system",
			"volume-ro": "touch: /data/new: Read-only file system", "version": "1,3",
			"masked": "/bin/sh: /bin/ls: Permission denied", "shm": "1", "mqueue": "1", "null": "ok",
			"pids.max": "77", "cpuset.cpus": "0",
		})
		limits := map[string]string{
			"memory.limit_in_bytes": "67108864", "memory.memsw.limit_in_bytes": "67108864",
			"cpu.shares": "512", "cpu.cfs_quota_us": "50000",
		}
		if b.cgroups.Mode == cgroup.V2 {
			limits = map[string]string{"memory.max": "67108864", "cpu.max": "50000 100000"}
		}
		b.expect(facts, limits)
	})
}

// TestRunPrivileged expects what the daemon itself may do, and no more: the
// host's devices, writable kernel file systems, every capability there is to
// give, and no seccomp filter although one is asked for.
func TestRunPrivileged(t *testing.T) {
	onEach(t, func(b *bench) {
		in := b.input(`
grep -E '^(CapBnd|Seccomp):' /proc/self/status | while read k v; do echo "${k%:}=$v"; done
echo "sys=$(grep -c '^sysfs /sys sysfs rw' /proc/self/mounts)"
echo "kmsg=$(ls /dev/kmsg)"
echo "mount=$(mount -t tmpfs none /tmp && echo ok)"
`)
		sc := in.Config.Linux.SecurityContext
		sc.Privileged = true
		sc.MaskedPaths = []string{"/proc/kcore"}
		sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/does/not/exist"}
		in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: -998}
		own, err := os.ReadFile("/proc/self/status")
		must(t, err)
		bounding := ""
		for line := range strings.Lines(string(own)) {
			if text, ok := strings.CutPrefix(line, "CapBnd:"); ok {
				bounding = strings.TrimSpace(text)
			}
		}
		b.expect(b.facts(in), map[string]string{"CapBnd": bounding, "Seccomp": "0", "sys": "1", "kmsg": "/dev/kmsg", "mount": "ok"})
	})
}

// TestRunHostNamespaces shares every namespace of the node.
func TestRunHostNamespaces(t *testing.T) {
	onEach(t, func(b *bench) {
		node := runtimeapi.NamespaceMode_NODE
		options := &runtimeapi.NamespaceOption{Network: node, Pid: node, Ipc: node}
		b.pod.Linux.SecurityContext.NamespaceOptions = options
		in := b.input(`for n in net pid ipc uts; do echo "$n=$(stat -L -c %i /proc/self/ns/$n)"; done`)
		in.Config.Linux.SecurityContext.NamespaceOptions = options
		want := map[string]string{}
		for _, name := range []string{"net", "pid", "ipc", "uts"} {
			var stat unix.Stat_t
			must(t, unix.Stat("/proc/self/ns/"+name, &stat))
			want[name] = uitoa(stat.Ino)
		}
		b.expect(b.facts(in), want)
	})
}

// TestRunSharedPID joins the PID namespace of another process of the pod.
func TestRunSharedPID(t *testing.T) {
	onEach(t, func(b *bench) {
		infra := exec.CommandContext(t.Context(), "/bin/sleep", "1000")
		infra.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		must(t, infra.Start())
		defer func() {
			must(t, infra.Process.Kill())
			if err := infra.Wait(); err == nil {
				t.Error("the infra process ended by itself")
			}
		}()
		for _, mode := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_TARGET} {
			in := b.input(`echo "first=$(cat /proc/1/comm)"`)
			in.Config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: mode, TargetId: "other"}
			in.Namespaces.PID = "/proc/" + uitoa(uint64(infra.Process.Pid)) + "/ns/pid"
			b.expect(b.facts(in), map[string]string{"first": "sleep"})
		}
	})
}

// TestRunSeccompFile blocks chmod by a profile of the node.
func TestRunSeccompFile(t *testing.T) {
	onEach(t, func(b *bench) {
		file := filepath.Join(b.dir, "profile.json")
		must(t, os.WriteFile(file, []byte(`{"defaultAction": "SCMP_ACT_ALLOW",
			"syscalls": [{"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}`), 0o644))
		in := b.input(`echo "chmod=$(chmod 400 /etc/passwd 2>&1)"`)
		in.Config.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{
			ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: file,
		}
		b.expect(b.facts(in), map[string]string{"chmod": "chmod: /etc/passwd: Operation not permitted"})
	})
}

// TestRunPropagation checks the three modes as critest does: what the host
// mounts, and what the container mounts, appears on the other side or not.
func TestRunPropagation(t *testing.T) {
	onEach(t, func(b *bench) {
		shared := filepath.Join(b.dir, "shared")
		must(t, os.MkdirAll(filepath.Join(shared, "inside"), 0o755))
		must(t, unix.Mount(shared, shared, "", unix.MS_BIND, ""))
		defer func() { must(t, unix.Unmount(shared, unix.MNT_DETACH)) }()
		must(t, unix.Mount("", shared, "", unix.MS_SHARED|unix.MS_REC, ""))
		for _, test := range []struct {
			mode    runtimeapi.MountPropagation
			reaches bool
		}{
			{runtimeapi.MountPropagation_PROPAGATION_PRIVATE, false},
			{runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, false},
			{runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true},
		} {
			in := b.input(`mount -t tmpfs none /m/inside && touch /m/inside/here && echo done=1`)
			in.Config.Linux.SecurityContext.Privileged = true
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/m", HostPath: shared, Propagation: test.mode}}
			b.expect(b.facts(in), map[string]string{"done": "1"})
			_, err := os.Stat(filepath.Join(shared, "inside/here"))
			if reached := err == nil; reached != test.reaches {
				t.Errorf("%s: mount of the container reached the host: got %t, want %t", test.mode, reached, test.reaches)
			}
			if err == nil {
				must(t, unix.Unmount(filepath.Join(shared, "inside"), unix.MNT_DETACH))
			}
		}
	})
}

// TestRunReadonlyMounts expects that a read-only mount leaves what is mounted
// below it alone, and that a recursive one does not.
func TestRunReadonlyMounts(t *testing.T) {
	onEach(t, func(b *bench) {
		top := filepath.Join(b.dir, "top")
		must(t, os.MkdirAll(filepath.Join(top, "sub"), 0o755))
		must(t, unix.Mount("none", filepath.Join(top, "sub"), "tmpfs", 0, "size=1m"))
		defer func() { must(t, unix.Unmount(filepath.Join(top, "sub"), unix.MNT_DETACH)) }()
		for _, recursive := range []bool{false, true} {
			in := b.input(`echo "top=$(touch /m/x 2>&1)"; echo "sub=$(touch /m/sub/x 2>&1)"`)
			in.Config.Mounts = []*runtimeapi.Mount{{
				ContainerPath: "/m", HostPath: top, Readonly: true, RecursiveReadOnly: recursive,
			}}
			want := map[string]string{"top": "touch: /m/x: Read-only file system", "sub": ""}
			if recursive {
				want["sub"] = "touch: /m/sub/x: Read-only file system"
			}
			b.expect(b.facts(in), want)
		}
	})
}

// TestRunDevice gives a device that containers do not have by default, under
// another name, and expects that no other is usable.
func TestRunDevice(t *testing.T) {
	onEach(t, func(b *bench) {
		in := b.input(`
echo "given=$(: 2>&1 < /dev/own && echo ok)"
echo "denied=$(: 2>&1 > /dev/own && echo ok)"
echo "type=$(stat -c %t,%T /dev/own)"
echo "other=$(head -c 0 /dev/mem 2>&1)"`)
		in.Config.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/own", HostPath: "/dev/fuse", Permissions: "r"}}
		b.expect(b.facts(in), map[string]string{"given": "ok", "denied": "/bin/sh: can't create /dev/own: Operation not permitted", "type": "a,e5", "other": "head: /dev/mem: No such file or directory"})
	})
}

func uitoa(n uint64) string { return strconv.FormatUint(n, 10) }
