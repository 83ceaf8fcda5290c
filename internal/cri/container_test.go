package cri

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/stream"
	"github.com/berth-runtime/berth/test/leakcheck"
)

func TestContainerStatusShowsEverything(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	view := nginx()
	e.engine.containers = []*pod.Container{view}
	e.images.images = []*image.Image{{ID: "sha256:aa", Tags: []string{"docker.io/library/nginx:1"}}}
	resp, err := e.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "container1", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &runtimeapi.ContainerStatus{
		Id: view.ID, Metadata: view.Config.Metadata, State: view.State, CreatedAt: 200e9, StartedAt: 201e9,
		// FinishedAt stays 0: it has not happened.
		Image: &runtimeapi.ImageSpec{Image: "docker.io/library/nginx:1"}, ImageRef: view.ImageRef, ImageId: view.ImageID,
		Labels: view.Config.Labels, Annotations: view.Config.Annotations, Mounts: view.Config.Mounts, LogPath: view.LogPath,
		Resources: &runtimeapi.ContainerResources{Linux: view.Resources}, User: view.User, StopSignal: view.StopSignal,
	}
	if !proto.Equal(resp.Status, want) {
		t.Errorf("status =\n%v, want\n%v", resp.Status, want)
	}
	if !strings.Contains(resp.Info["info"], `"pid":4711`) {
		t.Errorf("info = %s", resp.Info["info"])
	}
	view.State, view.FinishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, time.Unix(202, 0)
	view.ExitCode, view.Reason, view.Message = 3, "Error", "no such luck"
	want.State, want.FinishedAt, want.ExitCode, want.Reason, want.Message = view.State, 202e9, 3, view.Reason, view.Message
	resp, err = e.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "container1"})
	if err != nil || !proto.Equal(resp.GetStatus(), want) {
		t.Errorf("status after the end =\n%v, %v, want\n%v", resp.GetStatus(), err, want)
	}
}

func TestShownImageIsWhatPeopleKnow(t *testing.T) {
	s := &Server{Options: Options{Images: &fakeImages{images: []*image.Image{{ID: "sha256:aa", Tags: []string{"docker.io/library/nginx:1"}}}}}}
	for _, c := range []struct{ asked, user, want string }{
		{"nginx:1", "", "nginx:1"},
		{"sha256:aa", "nginx:stable", "nginx:stable"},
		{"sha256:aa", "", "docker.io/library/nginx:1"},
		{"sha256:cc", "", "sha256:cc"},
	} {
		view := &pod.Container{ImageID: c.asked, Config: &runtimeapi.ContainerConfig{
			Image: &runtimeapi.ImageSpec{Image: c.asked, UserSpecifiedImage: c.user},
		}}
		if got := s.shownImage(view).Image; got != c.want {
			t.Errorf("asked %q by a user who wrote %q: shown %q, want %q", c.asked, c.user, got, c.want)
		}
		if view.Config.Image.Image != c.asked {
			t.Errorf("the shared view was changed to %q", view.Config.Image.Image)
		}
	}
}

func TestListContainersPassesTheFilterOn(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	view := nginx()
	e.engine.containers = []*pod.Container{view}
	resp, err := e.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		Id: "c", PodSandboxId: "s", State: &runtimeapi.ContainerStateValue{}, LabelSelector: map[string]string{"k": "v"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	f := e.engine.filter
	if f.ID != "c" || f.SandboxID != "s" || f.ContainerState == nil || *f.ContainerState != runtimeapi.ContainerState_CONTAINER_CREATED || f.Labels["k"] != "v" {
		t.Errorf("filter = %+v", f)
	}
	want := &runtimeapi.Container{
		Id: view.ID, PodSandboxId: view.SandboxID, Metadata: view.Config.Metadata, Image: view.Config.Image,
		ImageRef: view.ImageRef, ImageId: view.ImageID, State: view.State, CreatedAt: 200e9,
		Labels: view.Config.Labels, Annotations: view.Config.Annotations,
	}
	if len(resp.Containers) != 1 || !proto.Equal(resp.Containers[0], want) {
		t.Errorf("containers =\n%v, want\n%v", resp.Containers, want)
	}
	s, err := e.runtime.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := receive(t, s.Recv); len(got) != 1 || len(got[0].Containers) != 1 {
		t.Errorf("streamed %v", got)
	}
}

func TestContainerCallsReachTheEngine(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	var calls []string
	e.engine.do = func(_ context.Context, c string) error {
		calls = append(calls, c)
		return nil
	}
	ctx := t.Context()
	created, err := e.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "s1", Config: nginx().Config})
	if err != nil || created.ContainerId != "new-container" {
		t.Fatalf("%v, %v", created, err)
	}
	exec, err := e.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "c1", Cmd: []string{"true"}, Timeout: 7})
	if err != nil || string(exec.Stdout) != "out" || string(exec.Stderr) != "err" || exec.ExitCode != 3 {
		t.Errorf("%v, %v", exec, err)
	}
	for _, err := range []error{
		second(e.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: "c1"})),
		second(e.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "c1", Timeout: 30})),
		second(e.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "c1", Timeout: 1 << 62})),
		second(e.runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c1", Linux: &runtimeapi.LinuxContainerResources{CpuShares: 9}})),
		second(e.runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c1"})),
		second(e.runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: "c1"})),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{
		"create nginx in s1", `exec c1 ["true"] 7s`, "start c1", "stop c1 30s", "stop c1 " + time.Duration(1<<63-1).String(),
		"update c1 9", "update c1 0", "reopen c1",
	}
	if !slices.Equal(calls, want) {
		t.Errorf("calls\n%q, want\n%q", calls, want)
	}
}

// Sessions are granted by whole ID, and only for what runs.
func TestStreamingSessionsAreGrantedForWhatRuns(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	view, sandbox := nginx(), webPod()
	e.engine.containers, e.engine.sandboxes = []*pod.Container{view}, []*pod.Sandbox{sandbox}
	ctx := t.Context()
	execs, err := e.runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: "container1", Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true})
	if err != nil || execs.Url != "http://127.0.0.1:1/exec/x" {
		t.Errorf("%v, %v", execs, err)
	}
	if _, err := e.runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: "container1", Stdout: true, Stderr: true}); err != nil {
		t.Error(err)
	}
	if _, err := e.runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: "sandbox1", Port: []int32{80}}); err != nil {
		t.Error(err)
	}
	want := []string{
		`exec ` + view.ID + ` ["sh"] {Stdin:true Stdout:true Stderr:false Terminal:true}`,
		`attach ` + view.ID + ` {Stdin:false Stdout:true Stderr:true Terminal:false}`,
		`portforward ` + sandbox.ID + ` [80]`,
	}
	if !slices.Equal(e.sessions.granted, want) {
		t.Errorf("granted\n%q, want\n%q", e.sessions.granted, want)
	}
	// What the container does not have is no reason to refuse.
	for _, req := range []*runtimeapi.AttachRequest{
		{ContainerId: "container1", Stdout: true, Tty: true}, {ContainerId: "container1", Stdout: true, Stdin: true},
	} {
		if _, err = e.runtime.Attach(ctx, req); err != nil {
			t.Errorf("attach with %v: %v", req, err)
		}
	}
	view.State, sandbox.State = runtimeapi.ContainerState_CONTAINER_EXITED, runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	for name, err := range map[string]error{
		"exec":         second(e.runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: "container1", Cmd: []string{"sh"}, Stdout: true})),
		"attach":       second(e.runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: "container1", Stdout: true})),
		"port-forward": second(e.runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: "sandbox1"})),
	} {
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s to what has ended: %v, want FailedPrecondition", name, err)
		}
	}
}

// What passes terminal sizes to the engine ends with its source.
func TestStreamsReachTheEngineWithTheirSizes(t *testing.T) {
	leakcheck.Check(t)
	from := make(chan stream.Size, 1)
	from <- stream.Size{Width: 80, Height: 24}
	close(from)
	s := toEngine(t.Context(), stream.Streams{Resize: from, Terminal: true})
	if size, ok := <-s.Resize; !ok || size != (pod.Size{Width: 80, Height: 24}) || !s.Terminal {
		t.Errorf("size %v, %v", size, ok)
	}
	if size, ok := <-s.Resize; ok {
		t.Errorf("another size %v", size)
	}
	if s := toEngine(t.Context(), stream.Streams{}); s.Resize != nil || s.Stdin != nil {
		t.Errorf("streams = %+v, want none", s)
	}
}

func TestListContainerStatsPassesTheFilterOn(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	resp, err := e.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{
		Id: "c", PodSandboxId: "s", LabelSelector: map[string]string{"k": "v"},
	}})
	if err != nil || len(resp.Stats) != 1 {
		t.Fatalf("%v, %v", resp, err)
	}
	if f := e.engine.filter; f.ID != "c" || f.SandboxID != "s" || f.Labels["k"] != "v" || f.ContainerState != nil {
		t.Errorf("filter = %+v", f)
	}
	s, err := e.runtime.StreamContainerStats(t.Context(), &runtimeapi.StreamContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := receive(t, s.Recv); len(got) != 1 || got[0].ContainerStats[0].Attributes.Id != "c1" {
		t.Errorf("streamed %v", got)
	}
}

// Events arrive with the pod as it was, and the stream ends only with the
// daemon or the client.
func TestContainerEvents(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	s, err := e.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	e.engine.events <- pod.Event{
		Type: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, ContainerID: "c1", At: time.Unix(9, 0),
		Sandbox: webPod(), Containers: []*pod.Container{nginx()},
	}
	event, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if event.ContainerId != "c1" || event.CreatedAt != 9e9 || event.PodSandboxStatus.Metadata.Name != "web" || len(event.ContainersStatuses) != 1 {
		t.Errorf("event = %v", event)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := e.server.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("after the shutdown: %v, want Unavailable", err)
	}
}
