package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/test/leakcheck"
)

// receive reads a stream to its end.
func receive[M any](t *testing.T, next func() (M, error)) []M {
	t.Helper()
	var all []M
	for {
		m, err := next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
}

func TestPodSandboxStatusShowsEverything(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	view := webPod()
	e.engine.sandboxes = []*pod.Sandbox{view}
	e.engine.containers = []*pod.Container{nginx()}
	before := time.Now().UnixNano()
	resp, err := e.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "sandbox1", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &runtimeapi.PodSandboxStatus{
		Id: view.ID, Metadata: view.Config.Metadata, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: 100e9 + 5,
		Network: &runtimeapi.PodSandboxNetworkStatus{
			Ip: "10.85.0.7", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::7"}, {Ip: "fd00::8"}},
		},
		Linux:  &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: view.Config.Linux.SecurityContext.NamespaceOptions}},
		Labels: view.Config.Labels, Annotations: view.Config.Annotations, RuntimeHandler: "runc",
	}
	if !proto.Equal(resp.Status, want) {
		t.Errorf("status =\n%v, want\n%v", resp.Status, want)
	}
	if len(resp.ContainersStatuses) != 1 || resp.ContainersStatuses[0].Id != nginx().ID || resp.Timestamp < before {
		t.Errorf("statuses %v at %d", resp.ContainersStatuses, resp.Timestamp)
	}
	for _, want := range []string{`"name":"cni-add"`, `"age":"1m`, `"networkNamespace":"/run/ns/1/net"`} {
		if !strings.Contains(resp.Info["info"], want) {
			t.Errorf("info %s lacks %s", resp.Info["info"], want)
		}
	}
}

func TestStatusOfNothingIsNotFound(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	if _, err := e.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("sandbox: %v, want NotFound", err)
	}
	if _, err := e.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("container: %v, want NotFound", err)
	}
}

// A filter by state 0 is a filter; none is not.
func TestListPodSandboxPassesTheFilterOn(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	e.engine.sandboxes = []*pod.Sandbox{webPod()}
	resp, err := e.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(e.engine.filter, pod.Filter{}) || len(resp.Items) != 1 {
		t.Errorf("filter %+v, items %v", e.engine.filter, resp.Items)
	}
	view := webPod()
	if want := (&runtimeapi.PodSandbox{
		Id: view.ID, Metadata: view.Config.Metadata, State: view.State, CreatedAt: 100e9 + 5,
		Labels: view.Config.Labels, Annotations: view.Config.Annotations, RuntimeHandler: "runc",
	}); !proto.Equal(resp.Items[0], want) {
		t.Errorf("item =\n%v, want\n%v", resp.Items[0], want)
	}
	_, err = e.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		Id: "sand", State: &runtimeapi.PodSandboxStateValue{}, LabelSelector: map[string]string{"k": "v"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	f := e.engine.filter
	if f.ID != "sand" || f.SandboxState == nil || *f.SandboxState != runtimeapi.PodSandboxState_SANDBOX_READY || f.Labels["k"] != "v" {
		t.Errorf("filter = %+v", f)
	}
}

// Every item arrives exactly once, whatever the messages hold.
func TestStreamPodSandboxesSendsEachOnce(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	for i := range 1500 {
		view := webPod()
		view.ID = fmt.Sprintf("sandbox-%04d", i)
		e.engine.sandboxes = append(e.engine.sandboxes, view)
	}
	s, err := e.runtime.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	messages := receive(t, s.Recv)
	var got []string
	for _, m := range messages {
		if len(m.PodSandboxes) == 0 || len(m.PodSandboxes) > maxBatchItems {
			t.Errorf("a message of %d items", len(m.PodSandboxes))
		}
		for _, item := range m.PodSandboxes {
			got = append(got, item.Id)
		}
	}
	if len(got) != 1500 || !slices.IsSorted(got) || len(slices.Compact(got)) != 1500 {
		t.Errorf("%d items in %d messages", len(got), len(messages))
	}
	e.engine.sandboxes = nil
	s, err = e.runtime.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if messages := receive(t, s.Recv); len(messages) != 0 {
		t.Errorf("%d messages for nothing", len(messages))
	}
}

func TestBatchesAreBoundedInBytes(t *testing.T) {
	large := &runtimeapi.Image{Id: strings.Repeat("x", maxBatchBytes*2/3)}
	huge := &runtimeapi.Image{Id: strings.Repeat("x", maxBatchBytes*2)}
	var sizes []int
	err := inBatches([]*runtimeapi.Image{large, large, huge, large}, func(batch []*runtimeapi.Image) error {
		sizes = append(sizes, len(batch))
		return nil
	})
	if err != nil || !slices.Equal(sizes, []int{1, 1, 1, 1}) {
		t.Errorf("batches %v, %v", sizes, err)
	}
}

// Sessions are known by whole IDs, so a prefix is completed before the sandbox
// is gone.
func TestStopAndRemoveEndSessions(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	e.engine.sandboxes = []*pod.Sandbox{webPod()}
	e.engine.containers = []*pod.Container{nginx()}
	var calls []string
	e.engine.do = func(_ context.Context, call string) error {
		calls = append(calls, call)
		return nil
	}
	if _, err := e.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: "sandbox1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: "container1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "unknown"}); err != nil {
		t.Fatal(err)
	}
	sandbox, container := webPod().ID, nginx().ID
	if want := []string{"stop sandbox " + sandbox, "remove " + container, "remove sandbox unknown"}; !slices.Equal(calls, want) {
		t.Errorf("calls %q, want %q", calls, want)
	}
	if want := []string{sandbox, container, "unknown", container}; !slices.Equal(e.sessions.ended, want) {
		t.Errorf("ended %q, want %q", e.sessions.ended, want)
	}
}

func TestRunPodSandboxPassesTheHandlerOn(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	var call string
	e.engine.do = func(_ context.Context, c string) error {
		call = c
		return nil
	}
	resp, err := e.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: webPod().Config, RuntimeHandler: "runc"})
	if err != nil || resp.PodSandboxId != "new-sandbox" || call != `run web "runc"` {
		t.Errorf("%v, %v after %q", resp, err, call)
	}
	_, err = e.runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: "s", Overhead: &runtimeapi.LinuxContainerResources{CpuShares: 1}, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2},
	})
	if err != nil || call != "update sandbox s 1 2" {
		t.Errorf("%v after %q", err, call)
	}
}
