package integration

import (
	"os"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestLife follows a pod from its first call to its last, with each OCI runtime, and looks at what kubelet would look at
// after each step.
func TestLife(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations = map[string]string{"a/b": "c\nd"}
		})
		s := p.Status()
		equal(t, "state of the pod", s.GetState(), runtimeapi.PodSandboxState_SANDBOX_READY)
		equal(t, "annotation", s.GetAnnotations()["a/b"], "c\nd")
		equal(t, "name", s.GetMetadata().GetName(), p.Config.GetMetadata().GetName())
		if s.GetCreatedAt() <= 0 || s.GetNetwork().GetIp() == "" {
			t.Errorf("pod was created at %d with address %q, want both", s.GetCreatedAt(), s.GetNetwork().GetIp())
		}

		c := p.Start([]string{"sh", "-c", "trap 'echo ending; exit 7' TERM; echo begun; while true; do sleep 0.05; done"})
		equal(t, "state of the container", c.Status().GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
		equal(t, "host name", c.Output("hostname"), p.Config.GetHostname())
		n.Eventually("the first line is in the log", func() error { return logHas(c, "stdout F begun") })

		c.Stop(10)
		end := c.Status()
		equal(t, "state after the stop", end.GetState(), runtimeapi.ContainerState_CONTAINER_EXITED)
		equal(t, "exit code", end.GetExitCode(), 7)
		equal(t, "reason", end.GetReason(), "Error")
		if !slices.Contains(c.LogLines(), "stdout F ending") {
			t.Errorf("log is %q, want the last line of the container in it", c.LogLines())
		}

		p.Stop()
		p.Stop()
		equal(t, "state after the stop", p.Status().GetState(), runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
		p.Remove()
		p.Remove()
		if left := append(sandboxes(t, n, nil), containers(t, n, nil)...); len(left) > 0 {
			t.Errorf("still listed after the removal: %v", left)
		}
	})
}

// TestRemoveRunning: removing a running pod means "make it gone", containers included.
func TestRemoveRunning(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		p.Start([]string{"sleep", "1000"})
		p.Start([]string{"sh", "-c", "trap '' TERM INT; while true; do sleep 1000; done"})
		p.Remove()
		if left := containers(t, n, nil); len(left) > 0 {
			t.Errorf("containers listed after the removal of their pod: %v", left)
		}
	})
}

// TestFilters: lists answer to every filter and to their conjunction.
func TestFilters(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	a := n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.Labels["app"] = "web" })
	b := n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.Labels["app"] = "db" })
	running := a.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
		c.Labels = map[string]string{"tier": "front"}
	})
	ended := a.Start([]string{"true"})
	ended.Exited()
	b.Stop()

	for _, c := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   []string
	}{
		{"id", &runtimeapi.PodSandboxFilter{Id: a.ID}, []string{a.ID}},
		{"id-prefix", &runtimeapi.PodSandboxFilter{Id: a.ID[:20]}, []string{a.ID}},
		{"label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "db"}}, []string{b.ID}},
		{"ready", &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}, []string{a.ID}},
		{"not-ready", &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}, []string{b.ID}},
		{"conjunction", &runtimeapi.PodSandboxFilter{Id: a.ID, LabelSelector: map[string]string{"app": "db"}}, nil},
		{"empty", &runtimeapi.PodSandboxFilter{}, []string{a.ID, b.ID}},
	} {
		t.Run("pods/"+c.name, func(t *testing.T) { sameSet(t, sandboxes(t, n, c.filter), c.want) })
	}
	for _, c := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   []string
	}{
		{"id", &runtimeapi.ContainerFilter{Id: running.ID}, []string{running.ID}},
		{"pod", &runtimeapi.ContainerFilter{PodSandboxId: a.ID}, []string{running.ID, ended.ID}},
		{"other-pod", &runtimeapi.ContainerFilter{PodSandboxId: b.ID}, nil},
		{"running", &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}, []string{running.ID}},
		{"created", &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_CREATED}}, nil},
		{"exited", &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}}, []string{ended.ID}},
		{"label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"tier": "front"}}, []string{running.ID}},
		{"wrong-label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"tier": "back"}}, nil},
	} {
		t.Run("containers/"+c.name, func(t *testing.T) { sameSet(t, containers(t, n, c.filter), c.want) })
	}
}

func sameSet(t *testing.T, got, want []string) {
	t.Helper()
	got, want = slices.Clone(got), slices.Clone(want)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("list has %v, want %v", got, want)
	}
}

// TestPodFiles: a pod has its resolver, its host name, its sysctls and its shared memory; what it says about a process of its
// own does not keep it from running.
func TestPodFiles(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = "named"
		c.DnsConfig = &runtimeapi.DNSConfig{
			Servers: []string{"10.9.8.7"}, Searches: []string{"cluster.local"}, Options: []string{"ndots:5"},
		}
		c.Linux.Sysctls = map[string]string{"net.ipv4.ping_group_range": "0 100", "kernel.shm_rmid_forced": "1"}
		sc := c.Linux.SecurityContext
		sc.RunAsUser, sc.SupplementalGroups, sc.ReadonlyRootfs = &runtimeapi.Int64Value{Value: 1000}, []int64{7}, true
		sc.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
		sc.Seccomp, sc.Apparmor = &runtimeapi.SecurityProfile{}, &runtimeapi.SecurityProfile{}
	})
	c := p.Start([]string{"sleep", "1000"})
	equal(t, "host name", c.Output("hostname"), "named")
	equal(t, "/etc/hostname", c.Output("cat", "/etc/hostname"), "named")
	resolv := c.Output("cat", "/etc/resolv.conf")
	for _, want := range []string{"nameserver 10.9.8.7", "search cluster.local", "options ndots:5"} {
		if !strings.Contains(resolv, want) {
			t.Errorf("resolv.conf is %q, want %q in it", resolv, want)
		}
	}
	equal(t, "sysctl", strings.Join(strings.Fields(c.Output("cat", "/proc/sys/net/ipv4/ping_group_range")), " "), "0 100")
	equal(t, "sysctl", c.Output("cat", "/proc/sys/kernel/shm_rmid_forced"), "1")
	c.Output("sh", "-c", "echo shared >/dev/shm/file")
	other := p.Start([]string{"sleep", "1000"})
	equal(t, "/dev/shm of another container", other.Output("cat", "/dev/shm/file"), "shared")

	unsaid := n.RunPod(func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig = &runtimeapi.DNSConfig{} }).Start([]string{"sleep", "1000"})
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "resolv.conf of a pod that names no resolver", unsaid.Output("cat", "/etc/resolv.conf"), strings.TrimRight(string(host), "\n"))
}

// TestNamespaces: each mode of each namespace is what it says.
func TestNamespaces(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	node := runtimeapi.NamespaceMode_NODE
	host := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: node, Pid: node, Ipc: node}
	})
	c := host.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: node, Pid: node, Ipc: node}
	})
	for _, ns := range []string{"net", "pid", "ipc"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, ns+" namespace of a container with the node's", c.Output("readlink", "/proc/self/ns/"+ns), own)
	}

	pod := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{}
	})
	shared := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}
	a := pod.Start([]string{"sleep", "1000"}, shared)
	b := pod.Start([]string{"sleep", "2000"}, shared)
	for _, ns := range []string{"net", "pid", "ipc", "uts"} {
		equal(t, ns+" namespace of the second container", b.Output("readlink", "/proc/self/ns/"+ns), a.Output("readlink", "/proc/self/ns/"+ns))
	}
	if ps := b.Output("ps", "-o", "args"); !strings.Contains(ps, "sleep 1000") {
		t.Errorf("processes in the pod are %q, want those of the first container among them", ps)
	}

	own := n.RunPod()
	first := own.Start([]string{"sleep", "3000"})
	target := own.Start([]string{"sleep", "4000"}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: first.ID}
	})
	if ps := target.Output("ps", "-o", "args"); !strings.Contains(ps, "sleep 3000") {
		t.Errorf("processes of a container that targets another are %q, want the other's among them", ps)
	}
	if ps := first.Output("ps", "-o", "pid,args"); !strings.Contains(ps, "1 sleep 3000") {
		t.Errorf("processes of a container are %q, want its own as PID 1", ps)
	}
}
