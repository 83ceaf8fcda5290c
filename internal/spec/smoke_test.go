package spec_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/test/privilege"
)

// TestRunOrdinary runs a container as a Deployment would have it and looks
// from inside at everything that was asked for.
func TestRunOrdinary(t *testing.T) {
	privilege.Root(t)
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
	privilege.Root(t)
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

		// Many privileged pods bring the host's /dev along.
		in = b.input(`echo "kmsg=$(ls /dev/kmsg)"; touch /dev/shm/mine`)
		in.Config.Linux.SecurityContext.Privileged = true
		in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/dev", HostPath: "/dev"}}
		b.expect(b.facts(in), map[string]string{"kmsg": "/dev/kmsg"})
		if _, err := os.Stat(filepath.Join(b.dir, "shm/mine")); err != nil {
			t.Errorf("/dev/shm of the container is not that of the pod: %v", err)
		}
	})
}

// TestRunHostNamespaces shares every namespace of the node.
func TestRunHostNamespaces(t *testing.T) {
	privilege.Root(t)
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
	privilege.Root(t)
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
	privilege.Root(t)
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
	privilege.Root(t)
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

// TestRunPropagationFromHost mounts on the host while the container runs.
func TestRunPropagationFromHost(t *testing.T) {
	privilege.Root(t)
	onEach(t, func(b *bench) {
		shared := filepath.Join(b.dir, "shared")
		inside := filepath.Join(shared, "inside")
		must(t, os.MkdirAll(inside, 0o755))
		must(t, unix.Mount(shared, shared, "", unix.MS_BIND, ""))
		defer func() { must(t, unix.Unmount(shared, unix.MNT_DETACH)) }()
		must(t, unix.Mount("", shared, "", unix.MS_SHARED|unix.MS_REC, ""))
		// A FIFO on either side says whose turn it is.
		must(t, errors.Join(unix.Mkfifo(filepath.Join(shared, "ready"), 0o600), unix.Mkfifo(filepath.Join(shared, "go"), 0o600)))
		for mode, want := range map[runtimeapi.MountPropagation]string{
			runtimeapi.MountPropagation_PROPAGATION_PRIVATE:           "0",
			runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: "1",
			runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     "1",
		} {
			in := b.input(`echo > /m/ready; cat /m/go; echo "seen=$(grep -c ' /m/inside ' /proc/self/mounts)"`)
			in.Config.Linux.SecurityContext.Privileged = true
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/m", HostPath: shared, Propagation: mode}}
			mounted := make(chan error, 1)
			go func() {
				_, err := os.ReadFile(filepath.Join(shared, "ready"))
				mounted <- errors.Join(err, unix.Mount("none", inside, "tmpfs", 0, "size=1m"),
					os.WriteFile(filepath.Join(shared, "go"), nil, 0))
			}()
			facts := b.facts(in)
			must(t, <-mounted)
			must(t, unix.Unmount(inside, unix.MNT_DETACH))
			if facts["seen"] != want {
				t.Errorf("%s: mounts of the host seen: got %q, want %q", mode, facts["seen"], want)
			}
		}
	})
}

// TestRunReadonlyMounts expects that a read-only mount leaves what is mounted
// below it alone, and that a recursive one does not.
func TestRunReadonlyMounts(t *testing.T) {
	privilege.Root(t)
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
	privilege.Root(t)
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
