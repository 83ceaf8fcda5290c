package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestPluginAdjusts: what plugins want a container to be like is seen in it, with each OCI runtime.
func TestPluginAdjusts(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the plugin"), 0o600); err != nil {
			t.Fatal(err)
		}
		p := connect(t, n, "10", &plugin{adjust: func(c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
			a := adjustment(dir)
			a.SetLinuxCgroupsPath(strings.Replace(c.GetLinux().GetCgroupsPath(), c.GetId(), "plugin-"+c.GetId(), 1))
			return a, nil
		}})
		// Its changes are part of what the next one sees.
		after := connect(t, n, "20", &plugin{})
		pod := n.RunPod()
		c := pod.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "KEEP", Value: []byte("1")}, {Key: "GO", Value: []byte("1")}, {Key: "CHANGE", Value: []byte("1")}}
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512}
		})
		env := c.Output("env")
		for _, want := range []string{"KEEP=1", "CHANGE=2", "NEW=3"} {
			if !strings.Contains(env, want) {
				t.Errorf("environment is %q, want it to have %s", env, want)
			}
		}
		if strings.Contains(env, "GO=") {
			t.Errorf("environment is %q, want it without GO", env)
		}
		equal(t, "file in the mount", c.Output("cat", "/plugin/file"), "from the plugin")
		equal(t, "limit of open files", c.Output("sh", "-c", "ulimit -n"), "321")
		equal(t, "OOM score", c.Output("cat", "/proc/1/oom_score_adj"), "77")
		equal(t, "sysctl", c.Output("cat", "/proc/sys/kernel/msgmax"), "4096")
		equal(t, "device", c.Output("sh", "-c", "head -c 3 /dev/plugin-zero | od -An -tx1"), " 00 00 00")
		equal(t, "command", c.Output("sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline"), "sleep 2000 ")
		equal(t, "quota", strings.TrimSuffix(cgroupFile(t, c, "cpu.cfs_quota_us", "cpu.max"), " 100000"), "25000")
		equal(t, "processes", cgroupFile(t, c, "pids.max", "pids.max"), "33")
		if got := readFile(t, "/proc/"+containerPID(t, c)+"/cgroup"); !strings.Contains(got, "plugin-"+c.ID) {
			t.Errorf("cgroups are %q, want the plugin's", got)
		}
		equal(t, "quota in the status", c.Status().GetResources().GetLinux().GetCpuQuota(), 25000)
		equal(t, "shares in the status", c.Status().GetResources().GetLinux().GetCpuShares(), 512)
		equal(t, "file of the hook", readFile(t, filepath.Join(dir, "hook")), "hook\n")
		seen := after.find("Create")[0].container
		equal(t, "command that the next plugin sees", strings.Join(seen.GetArgs(), " "), "sleep 2000")
		equal(t, "quota that the next plugin sees", seen.GetLinux().GetResources().GetCpu().GetQuota().GetValue(), 25000)

		// What cannot be had is refused by its name, before anything is started.
		p.mu.Lock()
		p.adjust = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
			a := &api.ContainerAdjustment{}
			a.AddMount(&api.Mount{Type: "bind", Source: filepath.Join(dir, "nothing"), Destination: "/x", Options: []string{"bind"}})
			return a, nil
		}
		p.mu.Unlock()
		_, err := pod.Create(n.ContainerConfig([]string{"true"}))
		if err := mentions(err, "mounts", "/x", "does not exist"); err != nil {
			t.Error(err)
		}
		equal(t, "containers", len(containers(t, n, &runtimeapi.ContainerFilter{PodSandboxId: pod.ID})), 1)
	})
}

// adjustment changes everything that can be looked at from inside.
func adjustment(dir string) *api.ContainerAdjustment {
	a := &api.ContainerAdjustment{}
	a.AddEnv("CHANGE", "2")
	a.AddEnv("NEW", "3")
	a.RemoveEnv("GO")
	a.SetArgs([]string{"sleep", "2000"})
	a.AddMount(&api.Mount{Type: "bind", Source: dir, Destination: "/plugin", Options: []string{"rbind", "ro"}})
	a.AddAnnotation("example.com/plugin", "was here")
	a.AddRlimit("RLIMIT_NOFILE", 321, 321)
	a.AddDevice(&api.LinuxDevice{Path: "/dev/plugin-zero", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(os.FileMode(0o666))})
	a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{
		Path: "/bin/sh", Args: []string{"sh", "-c", "echo hook > " + filepath.Join(dir, "hook")},
	}}})
	score := 77
	a.SetLinuxOomScoreAdj(&score)
	a.SetLinuxSysctl("kernel.msgmax", "4096")
	a.SetLinuxCPUQuota(25000)
	a.SetLinuxPidLimits(33)
	return a
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestPluginLimits: plugins change limits: those that a request asks for, those of other containers, at any time, and
// when they connect. What they have changed survives the daemon and a later update.
func TestPluginLimits(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Ready()
	pod := n.RunPod()
	first := pod.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000}
	})
	quota := func(c *harness.Container) string {
		return strings.TrimSuffix(cgroupFile(t, c, "cpu.cfs_quota_us", "cpu.max"), " 100000")
	}
	limit := func(id string, quota int64) *api.ContainerUpdate {
		u := &api.ContainerUpdate{ContainerId: id}
		u.SetLinuxCPUQuota(quota)
		return u
	}
	p := connect(t, n, "10", &plugin{sync: func(_ context.Context, known []*api.Container) []*api.ContainerUpdate {
		return []*api.ContainerUpdate{limit(known[0].GetId(), 40000)}
	}})
	n.Eventually("a plugin that connects has changed a limit", func() error {
		if got := quota(first); got != "40000" {
			return fmt.Errorf("quota is %s", got)
		}
		return nil
	})

	p.adjust = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		a.SetLinuxPidLimits(44)
		a.AddEnv("PLUGIN", "1")
		return a, []*api.ContainerUpdate{limit(first.ID, 30000)}
	}
	second, err := pod.Create(n.ContainerConfig([]string{"sleep", "1000"}))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "quota of the other container", quota(first), "30000")

	// An update of a container that has not started yet, then a daemon that dies: the adjustments stay.
	p.update = func(c *api.Container, r *api.LinuxResources) []*api.ContainerUpdate {
		return []*api.ContainerUpdate{limit(c.GetId(), r.GetCpu().GetQuota().GetValue()/2)}
	}
	setQuota := func(c *harness.Container, quota int64) {
		t.Helper()
		_, err := n.Runtime.UpdateContainerResources(n.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: c.ID, Linux: &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: quota},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	setQuota(second, 80000)
	n.KillDaemon()
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	equal(t, "environment", second.Output("sh", "-c", "echo $PLUGIN"), "1")
	equal(t, "quota that the plugin made of the request", quota(second), "40000")
	setQuota(second, 60000) // no plugin takes part any more
	equal(t, "quota of a later update", quota(second), "60000")
	equal(t, "processes after a later update", cgroupFile(t, second, "pids.max", "pids.max"), "44")

	p = connect(t, n, "10", &plugin{})
	failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{limit(first.ID, 20000), limit("missing", 20000), limit(second.ID, 20000)})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "updates that failed", len(failed), 1)
	equal(t, "the one that failed", failed[0].GetContainerId(), "missing")
	equal(t, "quota of the first", quota(first), "20000")
	equal(t, "quota of the second", quota(second), "20000")
	equal(t, "quota in the status", second.Status().GetResources().GetLinux().GetCpuQuota(), 20000)
	if !strings.Contains(p.kindsOf(first.ID), "Known") || !strings.Contains(p.kindsOf(second.ID), "Known") {
		t.Error("the plugin that connected to the new daemon did not get the containers")
	}
}

// TestPluginEvicts: a container that a plugin evicts is stopped, with its answer to an event or by itself. The library for
// plugins has no call for that, the protocol has.
func TestPluginEvicts(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Ready()
	pod := n.RunPod()
	obedient := []string{"sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait"}
	first, second := pod.Start(obedient), pod.Start(obedient)
	for _, c := range []*harness.Container{first, second} { // or the trap is not set yet
		c.Output("sh", "-c", "until pidof sleep; do :; done")
	}
	answers := ttrpc.WithUnaryServerInterceptor(
		func(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
			answer, err := method(ctx, unmarshal)
			if created, ok := answer.(*api.CreateContainerResponse); ok {
				created.Evict = []*api.ContainerEviction{{ContainerId: first.ID, Reason: "there is another one"}}
			}
			return answer, err
		})
	requests := ttrpc.WithUnaryClientInterceptor(
		func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) (err error) {
			if req.GetMethod() == "UpdateContainers" {
				req.Payload, err = proto.Marshal(&api.UpdateContainersRequest{
					Evict: []*api.ContainerEviction{{ContainerId: second.ID, Reason: "it is in the way"}, {ContainerId: "missing"}},
				})
				if err != nil {
					return err
				}
			}
			return invoke(ctx, req, resp)
		})
	p := connect(t, n, "10", &plugin{}, stub.WithTTRPCOptions([]ttrpc.ClientOpts{requests}, []ttrpc.ServerOpt{answers}))
	third := pod.Start([]string{"sleep", "1000"})
	equal(t, "exit code of the one that an answer evicts", first.Exited().GetExitCode(), 3)
	if _, err := p.stub.UpdateContainers(nil); err != nil {
		t.Fatal(err)
	}
	equal(t, "exit code of the one that a request evicts", second.Exited().GetExitCode(), 3)
	equal(t, "state of the third", third.Status().GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	p.eventually(n, first.ID, "Known Stop")
	p.eventually(n, second.ID, "Known Stop")
}
