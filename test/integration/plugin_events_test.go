package integration

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestPluginEvents: a plugin gets every event of pods and containers, once and in order, while they are in the
// state that the event is about. The subtests follow what critest asks for in its NRI specs.
func TestPluginEvents(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Ready()
	n.Pull()
	for _, test := range []struct {
		name string
		run  func(*testing.T, *harness.Node)
	}{
		{"order", testEventOrder},
		{"self-exited", testEventSelfExited},
		{"run-blocks", testEventRunBlocks},
		{"run-refused", testEventRunRefused},
		{"stop-blocks", testEventStopBlocks},
		{"stop-twice", testEventStopTwice},
		{"create-blocks", testEventCreateBlocks},
		{"create-refused", testEventCreateRefused},
		{"start-refused", testEventStartRefused},
		{"update", testEventUpdate},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, n) })
	}
}

func testEventOrder(t *testing.T, n *harness.Node) {
	p := connect(t, n, "00", &plugin{})
	pod := n.RunPod()
	c := pod.Start([]string{"sleep", "1000"})
	c.Stop(0)
	c.Remove()
	pod.Stop()
	pod.Remove()
	equal(t, "events of the pod", p.kindsOf(pod.ID), "Run Stop Remove")
	equal(t, "events of the container", p.kindsOf(c.ID), "Create PostCreate Start PostStart Stop Remove")
	run := p.find("Run")[0].pod
	m := pod.Config.GetMetadata()
	equal(t, "pod", run.GetNamespace()+"/"+run.GetName()+"/"+run.GetUid(), m.GetNamespace()+"/"+m.GetName()+"/"+m.GetUid())
	if len(run.GetIps()) == 0 || len(run.GetLinux().GetNamespaces()) == 0 {
		t.Errorf("the plugin got a pod without addresses %v or namespaces %v", run.GetIps(), run.GetLinux().GetNamespaces())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ev := range p.events {
		if ev.container != nil && ev.container.GetName() != c.Config.GetMetadata().GetName() {
			t.Errorf("%s names the container %q", ev.kind, ev.container.GetName())
		}
	}
}

func testEventSelfExited(t *testing.T, n *harness.Node) {
	p := connect(t, n, "00", &plugin{})
	c := n.RunPod().Start([]string{"sh", "-c", "exit 1"})
	p.eventually(n, c.ID, "Create PostCreate Start PostStart Stop")
	equal(t, "exit code", c.Exited().GetExitCode(), 1)
	equal(t, "exit code in the event", p.find("Stop")[0].container.GetExitCode(), 1)
	c.Stop(10)
	c.Remove()
	equal(t, "events", p.kindsOf(c.ID), "Create PostCreate Start PostStart Stop Remove")
}

// testEventRunBlocks: while a plugin looks at a new pod, it is not listed, and no container can be made in it.
func testEventRunBlocks(t *testing.T, n *harness.Node) {
	g := newGate("Run")
	connect(t, n, "00", &plugin{on: g.hold})
	ran := make(chan error, 1)
	cfg := n.PodConfig()
	go func() {
		_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
		ran <- err
	}()
	id := g.await(t, n).pod.GetId()
	if slices.Contains(sandboxes(t, n, nil), id) {
		t.Error("the pod is listed")
	}
	_, err := n.Runtime.PodSandboxStatus(n.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	wantError(t, err, codes.NotFound)
	_, err = n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: id, Config: n.ContainerConfig([]string{"true"}), SandboxConfig: cfg,
	})
	wantError(t, err, codes.FailedPrecondition, "not ready")
	close(g.open)
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	answer, err := n.Runtime.PodSandboxStatus(n.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "state", answer.GetStatus().GetState(), runtimeapi.PodSandboxState_SANDBOX_READY)
}

func testEventRunRefused(t *testing.T, n *harness.Node) {
	p := connect(t, n, "00", &plugin{on: failOnce("Run")})
	cfg := n.PodConfig()
	_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	wantError(t, err, codes.Aborted, "the plugin does not want it", "stage nri-pod")
	id := p.find("Run")[0].pod.GetId()
	if slices.Contains(sandboxes(t, n, nil), id) {
		t.Error("the pod that was refused is listed")
	}
	// Others may have got it before this one: all learn that it is gone.
	equal(t, "events of the pod that was refused", p.kindsOf(id), "Run Stop Remove")
	if _, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg}); err != nil {
		t.Errorf("the same request again: %v", err)
	}
}

// testEventStopBlocks: when a plugin learns that a pod stops, its containers have exited and are still there.
func testEventStopBlocks(t *testing.T, n *harness.Node) {
	pod := n.RunPod()
	c := pod.Start([]string{"sleep", "1000"})
	g := newGate("Stop")
	p := connect(t, n, "00", &plugin{on: ofPod(g.hold)})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_, err := n.Runtime.StopPodSandbox(n.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.ID})
		if err != nil {
			t.Errorf("stop pod: %v", err)
		}
	}()
	g.await(t, n)
	equal(t, "state of the container", c.Status().GetState(), runtimeapi.ContainerState_CONTAINER_EXITED)
	if !slices.Contains(containers(t, n, &runtimeapi.ContainerFilter{PodSandboxId: pod.ID}), c.ID) {
		t.Error("the container is not listed")
	}
	equal(t, "pod", pod.Status().GetId(), pod.ID)
	close(g.open)
	<-stopped
	equal(t, "events of the container", p.kindsOf(c.ID), "Known Stop")
}

func testEventStopTwice(t *testing.T, n *harness.Node) {
	p := connect(t, n, "00", &plugin{})
	pod := n.RunPod()
	pod.Stop()
	pod.Stop()
	_, err := pod.Create(n.ContainerConfig([]string{"true"}))
	wantError(t, err, codes.FailedPrecondition, "not ready")
	pod.Remove()
	pod.Remove()
	equal(t, "events", p.kindsOf(pod.ID), "Run Stop Remove")
	equal(t, "containers that the plugin got", len(p.find("Create")), 0)
}

func testEventCreateBlocks(t *testing.T, n *harness.Node) {
	g := newGate("Create")
	connect(t, n, "00", &plugin{on: g.hold})
	pod := n.RunPod()
	created := make(chan error, 1)
	go func() {
		_, err := pod.Create(n.ContainerConfig([]string{"true"}))
		created <- err
	}()
	id := g.await(t, n).container.GetId()
	if slices.Contains(containers(t, n, nil), id) {
		t.Error("the container is listed")
	}
	_, err := n.Runtime.ContainerStatus(n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	wantError(t, err, codes.NotFound)
	close(g.open)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	answer, err := n.Runtime.ContainerStatus(n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "state", answer.GetStatus().GetState(), runtimeapi.ContainerState_CONTAINER_CREATED)
}

func testEventCreateRefused(t *testing.T, n *harness.Node) {
	p := connect(t, n, "00", &plugin{on: failOnce("Create")})
	pod := n.RunPod()
	cfg := n.ContainerConfig([]string{"sleep", "1000"})
	_, err := pod.Create(cfg)
	wantError(t, err, codes.Aborted, "the plugin does not want it", "stage nri")
	refused := p.find("Create")[0].container.GetId()
	equal(t, "containers of the pod", len(containers(t, n, &runtimeapi.ContainerFilter{PodSandboxId: pod.ID})), 0)
	equal(t, "events of the one that was refused", p.kindsOf(refused), "Create Remove")
	c, err := pod.Create(cfg)
	if err != nil {
		t.Fatalf("the same request again: %v", err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	c.Stop(0)
	c.Remove()
	equal(t, "events", p.kindsOf(c.ID), "Create PostCreate Start PostStart Stop Remove")
}

func testEventStartRefused(t *testing.T, n *harness.Node) {
	p := connect(t, n, "00", &plugin{on: failOnce("Start")})
	pod := n.RunPod()
	c, err := pod.Create(n.ContainerConfig([]string{"sleep", "1000"}))
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, c.Start(), codes.Aborted, "the plugin does not want it")
	s := c.Status()
	equal(t, "state", s.GetState(), runtimeapi.ContainerState_CONTAINER_EXITED)
	equal(t, "reason", s.GetReason(), "StartError")
	c.Remove()
	equal(t, "events", p.kindsOf(c.ID), "Create PostCreate Start Stop Remove")
}

// testEventUpdate: a plugin may refuse new limits of a container and new resources of a pod.
func testEventUpdate(t *testing.T, n *harness.Node) {
	p := connect(t, n, "00", &plugin{})
	pod := n.RunPod()
	c := pod.Start([]string{"sleep", "1000"})
	updateContainer := func(quota int64) error {
		_, err := n.Runtime.UpdateContainerResources(n.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: c.ID, Linux: &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: quota},
		})
		return err
	}
	updatePod := func() error {
		_, err := n.Runtime.UpdatePodSandboxResources(n.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: pod.ID, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
		})
		return err
	}
	if err := updateContainer(20000); err != nil {
		t.Fatal(err)
	}
	if err := updatePod(); err != nil {
		t.Fatal(err)
	}
	equal(t, "events of the container", p.kindsOf(c.ID), "Create PostCreate Start PostStart Update PostUpdate")
	equal(t, "events of the pod", p.kindsOf(pod.ID), "Run Update PostUpdate")
	p.answer(failOnce("Update"))
	wantError(t, updateContainer(30000), codes.Aborted, "the plugin does not want it")
	equal(t, "quota in the status", c.Status().GetResources().GetLinux().GetCpuQuota(), 20000)
	p.answer(failOnce("Update"))
	if got := status.Code(updatePod()); got != codes.Aborted {
		t.Errorf("update of the pod ends with %v, want %v", got, codes.Aborted)
	}
}
