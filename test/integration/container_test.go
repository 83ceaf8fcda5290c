package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/test/harness"
)

// logHas looks for a line in a container's log.
func logHas(c *harness.Container, line string) error {
	if lines := c.LogLines(); !slices.Contains(lines, line) {
		return fmt.Errorf("the log is %q, want %q in it", lines, line)
	}
	return nil
}

// TestContainerOptions: what a Deployment asks for is what the container has. One pod serves all cases.
func TestContainerOptions(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		// A sandbox must be privileged for any of its containers to be; the others are not for that.
		p := n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
		for _, c := range []struct {
			name   string
			change func(*runtimeapi.ContainerConfig)
			run    string
			want   string
		}{
			{"environment", func(c *runtimeapi.ContainerConfig) {
				c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("one two")}}
			}, `echo "$A $PATH"`, "one two /bin"},
			{"working-directory", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/made/for/it" }, "pwd", "/made/for/it"},
			{"arguments", func(c *runtimeapi.ContainerConfig) { c.Args = []string{"-c", "sleep 1000; true", "zero", "first"} }, `tr '\0' ' ' </proc/1/cmdline`, "sh -c sleep 1000; true zero first "},
			{"user-id", func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1234}
				c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 4321}
				c.Linux.SecurityContext.SupplementalGroups = []int64{7, 8}
			}, "id -u; id -g; id -G", "1234\n4321\n4321 7 8"},
			{"user-name", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "user" }, "id -u; id -g; id -G", "1000\n1000\n1000 29 50000"},
			{"strict-groups", func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.RunAsUsername = "user"
				c.Linux.SecurityContext.SupplementalGroups = []int64{7}
				c.Linux.SecurityContext.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
			}, "id -G", "1000 7"},
			{"read-only-root", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }, "touch /file 2>&1 || true", "touch: /file: Read-only file system"},
			{"writable-root", nil, "touch /file && echo yes", "yes"},
			{"drop-capability", func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
			}, "grep CapBnd /proc/self/status", "CapBnd:\t0000000000000000"},
			{"add-capability", func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"all"}, AddCapabilities: []string{"NET_ADMIN"}}
			}, "grep CapEff /proc/self/status", "CapEff:\t0000000000001000"},
			{"default-seccomp", func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
			}, "grep Seccomp: /proc/self/status", "Seccomp:\t2"},
			{"no-seccomp", nil, "grep Seccomp: /proc/self/status", "Seccomp:\t0"},
			{"no-new-privileges", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.NoNewPrivs = true }, "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"},
			{"masked-path", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.MaskedPaths = []string{"/etc/passwd"} }, "wc -c </etc/passwd", "0"},
			{"read-only-path", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyPaths = []string{"/tmp"} }, "touch /tmp/file 2>&1 || true", "touch: /tmp/file: Read-only file system"},
			{"device", func(c *runtimeapi.ContainerConfig) {
				c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/nothing", Permissions: "rwm"}}
			}, "echo x >/dev/nothing && test -c /dev/nothing && echo yes", "yes"},
			{"privileged", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }, "mount -t tmpfs tmpfs /tmp && grep -c ' /tmp tmpfs' /proc/mounts", "1"},
			{"oom-score", func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 500 }, "cat /proc/1/oom_score_adj", "500"},
		} {
			t.Run(c.name, func(t *testing.T) {
				container := p.Start([]string{"sh"}, func(config *runtimeapi.ContainerConfig) {
					config.Args = []string{"-c", "sleep 1000"}
					if c.change != nil {
						c.change(config)
					}
				})
				equal(t, c.run, container.Output("sh", "-c", c.run), c.want)
				var null unix.Stat_t
				if err := unix.Stat(os.DevNull, &null); err != nil || null.Uid != 0 || null.Gid != 0 {
					t.Errorf("the node's %s belongs to %d:%d, %v", os.DevNull, null.Uid, null.Gid, err)
				}
				container.Remove()
			})
		}
	})
}

// TestImageDefaults: what a request leaves open comes from the image.
func TestImageDefaults(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	// The image's command is sh, which ends at the end of its standard input.
	c := p.Start(nil)
	equal(t, "exit code of the image's command without stdin", c.Exited().GetExitCode(), 0)
	equal(t, "reason", c.Exited().GetReason(), "Completed")
}

// TestMounts: bind mounts are what they say, links are followed, and propagation is kept.
func TestMounts(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		dir := filepath.Join(n.Dir(), "volume")
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(dir, dir+"-link"); err != nil {
			t.Fatal(err)
		}
		mounts := []*runtimeapi.Mount{
			{HostPath: dir, ContainerPath: "/rw"},
			{HostPath: dir + "-link", ContainerPath: "/ro", Readonly: true},
			{HostPath: filepath.Join(dir, "file"), ContainerPath: "/etc/one-file"},
		}
		c := n.RunPod().Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) { c.Mounts = mounts })
		equal(t, "file in the volume", c.Output("cat", "/rw/file"), "content")
		equal(t, "file behind a link", c.Output("cat", "/ro/file"), "content")
		equal(t, "a file that is mounted", c.Output("cat", "/etc/one-file"), "content")
		equal(t, "writing to a read-only mount", c.Exec("touch", "/ro/new").GetExitCode(), 1)
		c.Output("sh", "-c", "echo back >/rw/new")
		if data, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(data) != "back\n" {
			t.Errorf("the host sees %q, %v, want what the container wrote", data, err)
		}
		got := c.Status().GetMounts()
		if len(got) != len(mounts) {
			t.Fatalf("status has %d mounts (%v), want exactly the %d of the request", len(got), got, len(mounts))
		}
		for i := range got {
			equal(t, "host path in the status", got[i].GetHostPath(), mounts[i].GetHostPath())
			equal(t, "container path in the status", got[i].GetContainerPath(), mounts[i].GetContainerPath())
		}
	})
}

// TestResources: limits reach the cgroup, and an update of them too.
func TestResources(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		c := p.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{
				CpuShares: 256, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 0}},
			}
			// What kubelet adds on cgroup v2 only.
			if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
				c.Linux.Resources.Unified = map[string]string{"memory.oom.group": "1", "memory.low": "0"}
			}
		})
		r := c.Status().GetResources().GetLinux()
		equal(t, "memory limit in the status", r.GetMemoryLimitInBytes(), 64<<20)
		equal(t, "shares in the status", r.GetCpuShares(), 256)
		cgroups, err := os.ReadFile("/proc/" + containerPID(t, c) + "/cgroup")
		if parent := filepath.Base(p.Config.GetLinux().GetCgroupParent()); err != nil || !strings.Contains(string(cgroups), parent+"/") {
			t.Errorf("the container is in %s, %v, want it below %s", cgroups, err, parent)
		}
		memory := cgroupFile(t, c, "memory.limit_in_bytes", "memory.max")
		equal(t, "memory limit of the cgroup", memory, fmt.Sprint(64<<20))

		_, err = n.Runtime.UpdateContainerResources(n.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: c.ID, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
		})
		if err != nil {
			t.Fatalf("update resources: %v", err)
		}
		equal(t, "memory limit after the update", cgroupFile(t, c, "memory.limit_in_bytes", "memory.max"), fmt.Sprint(96<<20))
		for _, limit := range cgroupFiles(t, c, "memory.limit_in_bytes", "memory.max") {
			if limit != "max" {
				equal(t, "memory limit after the update, in every cgroup of the container", limit, fmt.Sprint(96<<20))
			}
		}
		r = c.Status().GetResources().GetLinux()
		equal(t, "memory limit in the status after the update", r.GetMemoryLimitInBytes(), 96<<20)
		equal(t, "shares in the status after an update which leaves them open", r.GetCpuShares(), 256)
	})
}

// cgroupFile reads a file of the cgroup in which the container's first process is, by its name in v1 or v2.
func cgroupFile(t *testing.T, c *harness.Container, v1, v2 string) string {
	t.Helper()
	return cgroupFiles(t, c, v1, v2)[0]
}

// cgroupFiles reads a file of the cgroup in which the container's first process is, and of those above it that are the
// container's too: with systemd, crun puts the process into another one beneath it.
func cgroupFiles(t *testing.T, c *harness.Container, v1, v2 string) []string {
	t.Helper()
	lines, err := os.ReadFile("/proc/" + containerPID(t, c) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	controller, _, _ := strings.Cut(v1, ".")
	var found []string
	for line := range strings.Lines(string(lines)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		root, name := filepath.Join("/sys/fs/cgroup", controller), v1
		if f[1] == "" {
			root, name = "/sys/fs/cgroup", v2
		} else if !slices.Contains(strings.Split(f[1], ","), controller) {
			continue
		}
		for dir := f[2]; strings.Contains(dir, c.ID); dir = filepath.Dir(dir) {
			if data, err := os.ReadFile(filepath.Join(root, dir, name)); err == nil {
				found = append(found, strings.TrimSpace(string(data)))
			}
		}
	}
	if len(found) == 0 {
		t.Fatalf("find %s or %s of the container in %s", v1, v2, lines)
	}
	return found
}

// containerPID finds the container's process from outside.
func containerPID(t *testing.T, c *harness.Container) string {
	t.Helper()
	return cgroupPID(t, c.ID)
}

// cgroupPID is the first process of those in the cgroup whose path has these words: others come and go.
func cgroupPID(t *testing.T, words string) string {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var first proc.Stat
	for _, f := range procs {
		if data, err := os.ReadFile(f); err != nil || !strings.Contains(string(data), words) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			t.Fatal(err)
		}
		p, err := proc.Read(pid)
		if err == nil && (first.PID == 0 || p.Started < first.Started || p.PID == first.Parent) {
			first = p
		}
	}
	if first.PID == 0 {
		t.Fatalf("no process is in a cgroup of %s", words)
	}
	return strconv.Itoa(first.PID)
}

// TestOOM: a container that takes too much memory says so in its status.
func TestOOM(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		c := n.RunPod().Start([]string{"dd", "if=/dev/zero", "of=/dev/null", "bs=100M"}, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 15 << 20, MemorySwapLimitInBytes: 15 << 20}
		})
		s := c.Exited()
		equal(t, "reason", s.GetReason(), "OOMKilled")
		equal(t, "exit code", s.GetExitCode(), 137)
	})
}

// TestOOMOfChild: a container reports an OOM-killed child, whatever exit code its first process then chooses.
func TestOOMOfChild(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		for _, code := range []int32{0, 3, 137} {
			c := p.Start([]string{"sh", "-c", fmt.Sprintf("dd if=/dev/zero of=/dev/null bs=100M; exit %d", code)}, func(c *runtimeapi.ContainerConfig) {
				c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 15 << 20, MemorySwapLimitInBytes: 15 << 20}
			})
			s := c.Exited()
			equal(t, "reason", s.GetReason(), "OOMKilled")
			equal(t, "exit code", s.GetExitCode(), code)
		}
	})
}

// TestStopSignal: the request's signal comes before the image's, and a container that ignores it is killed.
func TestStopSignal(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		c := p.Start([]string{"sh", "-c", "trap 'exit 3' USR1; trap '' TERM; echo ready; while true; do sleep 0.05; done"}, func(c *runtimeapi.ContainerConfig) {
			c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
		})
		n.Eventually("the trap is set", func() error { return logHas(c, "stdout F ready") })
		c.Stop(30)
		equal(t, "exit code after the stop signal", c.Status().GetExitCode(), 3)

		deaf := p.Start([]string{"sh", "-c", "trap '' TERM; echo ready; while true; do sleep 0.05; done"})
		n.Eventually("the trap is set", func() error { return logHas(deaf, "stdout F ready") })
		deaf.Stop(1)
		equal(t, "exit code of a container that ignores the signal", deaf.Status().GetExitCode(), 137)
	})
}
