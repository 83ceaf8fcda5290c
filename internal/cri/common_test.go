package cri

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/test/leakcheck"
)

func TestErrorsGetTheCodeOfTheirKind(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{errors.New("plain"), codes.Unknown},
		{fmt.Errorf("mount x: %w", errdefs.ErrInvalidArgument), codes.InvalidArgument},
		{fmt.Errorf("pod x: %w", errdefs.ErrNotFound), codes.NotFound},
		{fmt.Errorf("pod x: %w", errdefs.ErrAlreadyExists), codes.AlreadyExists},
		{fmt.Errorf("pod x: %w", errdefs.ErrFailedPrecondition), codes.FailedPrecondition},
		{fmt.Errorf("pull x: %w", errdefs.ErrPermissionDenied), codes.PermissionDenied},
		{fmt.Errorf("pull x: %w", errdefs.ErrUnauthenticated), codes.Unauthenticated},
		{fmt.Errorf("write x: %w", syscall.ENOSPC), codes.ResourceExhausted},
		{fmt.Errorf("stage cni-add for 118s: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("gone: %w", context.Canceled), codes.Canceled},
		{fmt.Errorf("shim: %w", errdefs.ErrUnavailable), codes.Unavailable},
		// Time was up while something could not be reached: time is what counts.
		{errors.Join(errdefs.ErrUnavailable, context.DeadlineExceeded), codes.DeadlineExceeded},
		{status.Error(codes.Aborted, "has a code"), codes.Aborted},
	} {
		got := statusOf(c.err)
		if status.Code(got) != c.want {
			t.Errorf("%v: code %v, want %v", c.err, status.Code(got), c.want)
		}
		if want := strings.ReplaceAll(status.Convert(c.err).Message(), "\n", "; "); c.err != nil && status.Convert(got).Message() != want {
			t.Errorf("%v: text %q", c.err, status.Convert(got).Message())
		}
	}
}

// A request of any length makes an error of some length, which has the cause at its end.
func TestErrorsHaveALimit(t *testing.T) {
	err := statusOf(fmt.Errorf("config.image.image %q: %w", strings.Repeat("x", 1<<20), errdefs.ErrInvalidArgument))
	text := status.Convert(err).Message()
	if len(text) > maxErrorText+10 || !strings.HasPrefix(text, "config.image.image") || !strings.HasSuffix(text, "x\": invalid argument") {
		t.Errorf("error of %d bytes: %.50s…", len(text), text)
	}
}

// An error says which pod and container it is about, after the text that the
// client may look at.
func TestErrorsNamePodAndContainer(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	e.engine.sandboxes = []*pod.Sandbox{webPod()}
	e.engine.containers = []*pod.Container{nginx()}
	e.engine.do = func(context.Context, string) error {
		return fmt.Errorf("ImageVolumeMountFailed: no such layer: %w", errdefs.ErrFailedPrecondition)
	}
	_, err := e.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: "container1"})
	want := "ImageVolumeMountFailed: no such layer: failed precondition (container nginx) (pod shop/web)"
	if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != want {
		t.Errorf("error = %v, want %q", err, want)
	}
	if log := e.log.String(); !strings.Contains(log, "pod=shop/web") || !strings.Contains(log, "container=nginx") {
		t.Errorf("log names neither: %s", log)
	}
	// One that names them already is left alone.
	e.engine.do = func(context.Context, string) error { return errors.New("container nginx of shop/web: broken") }
	_, err = e.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: "container1"})
	if got := status.Convert(err).Message(); got != "container nginx of shop/web: broken" {
		t.Errorf("error = %q", got)
	}
}

func TestPanicIsAnInternalErrorOfOneCall(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	e.engine.do = func(context.Context, string) error { panic("a defect") }
	_, err := e.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: "c"})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "a defect") {
		t.Errorf("error = %v, want Internal with the panic's value", err)
	}
	if log := e.log.String(); !strings.Contains(log, "common_test.go") {
		t.Errorf("the log lacks the stack: %s", log)
	}
	if _, err := e.runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

// A client whose time runs out sees the stage, not its own deadline: the call
// is given up a little earlier. How much earlier is looked at instead of whether
// the answer is in time, which a machine under load does not promise.
func TestDeadlineAnswersWithTheStage(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	given := make(chan time.Time, 1)
	e.engine.do = func(ctx context.Context, _ string) error {
		deadline, _ := ctx.Deadline()
		given <- deadline
		<-ctx.Done()
		return fmt.Errorf("stage cni-add for 1.9s: %w", ctx.Err())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	wanted, _ := ctx.Deadline()
	service := &runtimeService{Server: e.server}
	_, err := e.server.interceptUnary(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "s"},
		&grpc.UnaryServerInfo{FullMethod: runtimeapi.RuntimeService_StopPodSandbox_FullMethodName},
		func(ctx context.Context, req any) (any, error) {
			return service.StopPodSandbox(ctx, req.(*runtimeapi.StopPodSandboxRequest))
		})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "stage cni-add") {
		t.Errorf("error = %v, want DeadlineExceeded naming the stage", err)
	}
	if margin := wanted.Sub(<-given); margin <= 0 || margin > replyMargin {
		t.Errorf("the call is given up %v before its deadline, want some time up to %v", margin, replyMargin)
	}
}

// Requests that lack what they are about are refused by the field's name.
func TestRequestsWithoutTheirSubjectAreRefused(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	ctx := t.Context()
	for name, c := range map[string]struct {
		call  func() error
		field string
	}{
		"run": {func() error { return second(e.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{})) }, "config"},
		"run_metadata": {func() error {
			return second(e.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{}}))
		}, "config.metadata"},
		"stop_pod":     {func() error { return second(e.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{})) }, "pod_sandbox_id"},
		"remove_pod":   {func() error { return second(e.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{})) }, "pod_sandbox_id"},
		"pod_status":   {func() error { return second(e.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{})) }, "pod_sandbox_id"},
		"pod_stats":    {func() error { return second(e.runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{})) }, "pod_sandbox_id"},
		"port_forward": {func() error { return second(e.runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{})) }, "pod_sandbox_id"},
		"create":       {func() error { return second(e.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{})) }, "pod_sandbox_id"},
		"create_config": {func() error {
			return second(e.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "s"}))
		}, "config"},
		"start":  {func() error { return second(e.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{})) }, "container_id"},
		"stop":   {func() error { return second(e.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{})) }, "container_id"},
		"remove": {func() error { return second(e.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{})) }, "container_id"},
		"status": {func() error { return second(e.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{})) }, "container_id"},
		"stats":  {func() error { return second(e.runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{})) }, "container_id"},
		"update": {func() error {
			return second(e.runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{}))
		}, "container_id"},
		"reopen": {func() error {
			return second(e.runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{}))
		}, "container_id"},
		"exec":          {func() error { return second(e.runtime.Exec(ctx, &runtimeapi.ExecRequest{})) }, "container_id"},
		"attach":        {func() error { return second(e.runtime.Attach(ctx, &runtimeapi.AttachRequest{})) }, "container_id"},
		"exec_sync":     {func() error { return second(e.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{})) }, "container_id"},
		"exec_sync_cmd": {func() error { return second(e.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "c"})) }, "cmd"},
		"exec_sync_nul": {func() error {
			return second(e.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "c", Cmd: []string{"a", "b\x00c"}}))
		}, "cmd[1]"},
		"pull":         {func() error { return second(e.image.PullImage(ctx, &runtimeapi.PullImageRequest{})) }, "image.image"},
		"image_status": {func() error { return second(e.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{})) }, "image.image"},
		"remove_image": {func() error { return second(e.image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{})) }, "image.image"},
	} {
		err := c.call()
		if status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), c.field+": ") {
			t.Errorf("%s: %v, want InvalidArgument about %s", name, err, c.field)
		}
	}
}

// second drops a response.
func second[R any](_ R, err error) error { return err }

func TestStatusTellsWhatIsReadyAndWhy(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	resp, err := e.runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Status.Conditions {
		if !c.Status {
			t.Errorf("condition %v, want true", c)
		}
	}
	features := map[string]bool{}
	for _, h := range resp.RuntimeHandlers {
		features[h.Name] = h.Features.RecursiveReadOnlyMounts
	}
	if want := map[string]bool{"": true, "crun": true, "runc": false}; !reflect.DeepEqual(features, want) {
		t.Errorf("recursive read-only by handler = %v, want %v", features, want)
	}
	if !resp.Features.SupplementalGroupsPolicy || !resp.Features.MountOptions || resp.Features.UserNamespacesHostNetwork {
		t.Errorf("features = %v", resp.Features)
	}
	if !strings.Contains(resp.Info["config"], `"stateDir":"/run/x"`) {
		t.Errorf("info = %v", resp.Info)
	}
	if got, want := resp.Info["checkpoints"], `{"handlers":["crun"],"problem":"too old a kernel"}`; got != want {
		t.Errorf("checkpoints = %s, want %s", got, want)
	}

	e.engine.network = errors.New("no conflist in /etc/cni/net.d")
	e.engine.handlers = map[string]handlers.Info{"crun": {Problem: "needs hugetlb as v1"}}
	resp, err = e.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var messages []string
	for _, c := range resp.Status.Conditions {
		if c.Status || c.Reason == "" {
			t.Errorf("condition %v, want false with a reason", c)
		}
		messages = append(messages, c.Message)
	}
	if all := strings.Join(messages, "; "); !strings.Contains(all, "needs hugetlb") || !strings.Contains(all, "no conflist") {
		t.Errorf("messages = %s", all)
	}
	if len(resp.Info) != 0 {
		t.Errorf("info = %v without verbose", resp.Info)
	}
}

func TestVersionAndRuntimeConfig(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	v, err := e.runtime.Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if v.Version == "" || v.RuntimeName != "berth" || v.RuntimeVersion != "1.2.3" || v.RuntimeApiVersion != "v1" {
		t.Errorf("version = %v", v)
	}
	c, err := e.runtime.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || c.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("runtime config = %v, %v", c, err)
	}
	if _, err := e.runtime.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{}); err != nil {
		t.Errorf("UpdateRuntimeConfig: %v", err)
	}
}
