package cri

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/leakcheck"
)

// TestCheckpointCalls: the three calls reach the engine with all they say, and
// what is missing is named.
func TestCheckpointCalls(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	var calls []string
	e.engine.do = func(_ context.Context, call string) error {
		calls = append(calls, call)
		return nil
	}
	_, err := e.runtime.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: "c", Location: "/a.tar", Timeout: 3})
	if err != nil {
		t.Error(err)
	}
	_, err = e.runtime.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{
		PodSandboxId: "p", OutputPath: "/out", ContainerIds: []string{"c", "d"}, Options: map[string]string{"a": "b"},
	})
	if err != nil {
		t.Error(err)
	}
	config := func(name string) *runtimeapi.ContainerConfig {
		return &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}}
	}
	resp, err := e.runtime.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{
		CheckpointPath: "/in", RuntimeHandler: "runc", Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web"}},
		ContainerConfigs: []*runtimeapi.ContainerConfig{config("two"), config("one")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(resp.PodSandboxId, resp.RestoredContainers[0].Name, resp.RestoredContainers[0].ContainerId, resp.RestoredContainers[1].ContainerId); got != "restoredtwo21" {
		t.Errorf("restored: got %v", resp)
	}
	want := "checkpoint c /a.tar 3s; checkpoint pod p /out [c d] map[a:b]; restore /in web \"runc\" map[]"
	if got := strings.Join(calls, "; "); got != want {
		t.Errorf("the engine was asked to\n%s, want\n%s", got, want)
	}
	for field, err := range map[string]error{
		"container_id":      second(e.runtime.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{Location: "/a"})),
		"location":          second(e.runtime.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: "c"})),
		"timeout":           second(e.runtime.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: "c", Location: "/a", Timeout: -1})),
		"pod_sandbox_id":    second(e.runtime.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{OutputPath: "/a"})),
		"output_path":       second(e.runtime.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: "p"})),
		"checkpoint_path":   second(e.runtime.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{})),
		"config":            second(e.runtime.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{CheckpointPath: "/a"})),
		"container_configs": second(e.runtime.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{CheckpointPath: "/a", Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{}}})),
	} {
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field+":") {
			t.Errorf("%s: got %v, want an invalid argument that names it", field, err)
		}
	}
	e.engine.do = func(context.Context, string) error { return fmt.Errorf("no CRIU: %w", errdefs.ErrFailedPrecondition) }
	if err := second(e.runtime.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: "c", Location: "/a"})); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("refused by the engine: got %v", err)
	}
}
