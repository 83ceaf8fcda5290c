package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "github.com/berth-runtime/berth/api/berth/v1"
)

// The IDs of what the canned runtime holds. The first two pods share a
// beginning.
var (
	idWeb     = strings.Repeat("a1", 32)
	idDB      = "a1b" + strings.Repeat("2", 61)
	idOld     = strings.Repeat("d4", 32)
	idNginx   = strings.Repeat("c1", 32)
	idSidecar = strings.Repeat("c2", 32)
	idPG      = strings.Repeat("e5", 32)
	idPGOld   = strings.Repeat("e6", 32)
	imgNginx  = "sha256:" + strings.Repeat("11", 32)
	imgPG     = "sha256:" + strings.Repeat("22", 32)
)

// epoch is when the canned world stands still.
var epoch = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) int64 { return epoch.Add(-d).UnixNano() }

// canned is a CRI runtime with fixed answers. What `berth` sends it is
// kept for tests to look at.
type canned struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	berthv1.UnimplementedNodeServer

	mu         sync.Mutex
	pods       []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
	statuses   map[string]*runtimeapi.ContainerStatus
	images     []*runtimeapi.Image
	calls      []string

	pullErr, startErr error
	pod               *runtimeapi.RunPodSandboxRequest
	container         *runtimeapi.CreateContainerRequest
	auth              *runtimeapi.AuthConfig
	progress          []*berthv1.WatchPullResponse
	exitCode          int32
	output            string // in the format of a log
	events            chan *runtimeapi.ContainerEventResponse
	// happens, if not nil, are the only events before the runtime goes away.
	happens []*runtimeapi.ContainerEventResponse
	updated *runtimeapi.UpdateContainerResourcesRequest
	// stats are answered in turn, the last one again and again. What is nil is
	// not implemented.
	stats       [][]*runtimeapi.ContainerStats
	podStats    []*runtimeapi.PodSandboxStats
	descriptors []*runtimeapi.MetricDescriptor
	metrics     []*runtimeapi.PodSandboxMetrics
}

func (c *canned) UpdateContainerResources(_ context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.updated = r
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (c *canned) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, fmt.Sprintf(format, args...))
}

func (c *canned) noted() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.calls, "\n")
}

// sorted are the calls whose order is not fixed.
func (c *canned) sorted() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(slices.Sorted(slices.Values(c.calls)), "\n")
}

func newCanned() *canned {
	meta := func(name, ns string) *runtimeapi.PodSandboxMetadata {
		return &runtimeapi.PodSandboxMetadata{Name: name, Namespace: ns, Uid: "uid-" + name}
	}
	container := func(id, pod, name string, attempt uint32, image string, state runtimeapi.ContainerState, age time.Duration) *runtimeapi.Container {
		return &runtimeapi.Container{
			Id: id, PodSandboxId: pod, Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt},
			Image: &runtimeapi.ImageSpec{Image: image}, ImageId: image, State: state, CreatedAt: ago(age),
			Labels: map[string]string{"app": name},
		}
	}
	const running, exited = runtimeapi.ContainerState_CONTAINER_RUNNING, runtimeapi.ContainerState_CONTAINER_EXITED
	c := &canned{
		pods: []*runtimeapi.PodSandbox{
			{Id: idWeb, Metadata: meta("web", "shop"), CreatedAt: ago(90 * time.Second), Labels: map[string]string{"tier": "front"}},
			{Id: idDB, Metadata: meta("db", "shop"), CreatedAt: ago(3 * time.Hour), RuntimeHandler: "runc"},
			{Id: idOld, Metadata: meta("old", "test"), CreatedAt: ago(72 * time.Hour), State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY},
		},
		containers: []*runtimeapi.Container{
			container(idNginx, idWeb, "nginx", 0, imgNginx, running, 80*time.Second),
			container(idSidecar, idWeb, "sidecar", 2, imgPG, running, 70*time.Second),
			container(idPG, idDB, "postgres", 1, imgPG, running, 2*time.Hour),
			container(idPGOld, idDB, "postgres", 0, imgPG, exited, 3*time.Hour),
		},
		statuses: map[string]*runtimeapi.ContainerStatus{},
		images: []*runtimeapi.Image{
			{Id: imgNginx, RepoTags: []string{"docker.io/library/nginx:1.27"}, Size: 54_321_000, RepoDigests: []string{"docker.io/library/nginx@sha256:" + strings.Repeat("ab", 32)}},
			{Id: imgPG, RepoTags: []string{"registry.example/pg:16", "registry.example/pg:latest"}, Size: 999, Pinned: true, Uid: &runtimeapi.Int64Value{Value: 70}},
		},
		events: make(chan *runtimeapi.ContainerEventResponse, 16),
	}
	for _, ctr := range c.containers {
		c.statuses[ctr.Id] = &runtimeapi.ContainerStatus{
			Id: ctr.Id, Metadata: ctr.Metadata, State: ctr.State, CreatedAt: ctr.CreatedAt, Image: ctr.Image, ImageId: ctr.ImageId,
		}
	}
	old := c.statuses[idPGOld]
	old.ExitCode, old.Reason, old.FinishedAt = 137, "OOMKilled", ago(2*time.Hour)
	return c
}

func (c *canned) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "canned", RuntimeVersion: "1.2.3", RuntimeApiVersion: "v1"}, nil
}

func (c *canned) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &runtimeapi.ListPodSandboxResponse{Items: c.pods}, nil
}

func (c *canned) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	for _, p := range c.pods {
		if p.Id == r.PodSandboxId {
			st := &runtimeapi.PodSandboxStatus{Id: p.Id, Metadata: p.Metadata, State: p.State, CreatedAt: p.CreatedAt}
			if p.Id == idWeb {
				st.Network = &runtimeapi.PodSandboxNetworkStatus{Ip: "10.85.0.7", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd62::7"}}}
			}
			return &runtimeapi.PodSandboxStatusResponse{Status: st, Info: map[string]string{"network": `{"kind":"builtin"}`, "note": "plain"}}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no sandbox %s", r.PodSandboxId)
}

func (c *canned) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &runtimeapi.ListContainersResponse{Containers: c.containers}, nil
}

func (c *canned) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st, ok := c.statuses[r.ContainerId]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "no container %s", r.ContainerId)
	}
	// A copy, since it is sent while a test may change what is kept.
	return &runtimeapi.ContainerStatusResponse{Status: proto.CloneOf(st)}, nil
}

func (c *canned) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: c.images}, nil
}

func (c *canned) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	for _, i := range c.images {
		for _, name := range append([]string{i.Id}, i.RepoTags...) {
			if name == r.Image.Image || strings.HasSuffix(name, "/"+r.Image.Image) {
				return &runtimeapi.ImageStatusResponse{Image: i}, nil
			}
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

func (c *canned) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	c.note("pull %s", r.Image.Image)
	c.auth = r.Auth
	if c.pullErr != nil {
		return nil, c.pullErr
	}
	return &runtimeapi.PullImageResponse{ImageRef: imgNginx}, nil
}

func (c *canned) WatchPull(_ *berthv1.WatchPullRequest, s grpc.ServerStreamingServer[berthv1.WatchPullResponse]) error {
	if c.progress == nil {
		return status.Error(codes.Unimplemented, "no progress")
	}
	for _, p := range c.progress {
		if err := s.Send(p); err != nil {
			return err
		}
	}
	return nil
}

func (c *canned) RemoveImage(_ context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	c.note("rmi %s", r.Image.Image)
	return &runtimeapi.RemoveImageResponse{}, nil
}

func (c *canned) StopContainer(_ context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c.note("stop container %.4s after %d", r.ContainerId, r.Timeout)
	return &runtimeapi.StopContainerResponse{}, nil
}

func (c *canned) RemoveContainer(_ context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c.note("remove container %.4s", r.ContainerId)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (c *canned) StopPodSandbox(_ context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	c.note("stop pod %.4s", r.PodSandboxId)
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (c *canned) RemovePodSandbox(_ context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	c.note("remove pod %.4s", r.PodSandboxId)
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (c *canned) RunPodSandbox(_ context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	c.note("run pod")
	c.pod = r
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: "feed"}, nil
}

func (c *canned) CreateContainer(_ context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	c.note("create container")
	c.container = r
	return &runtimeapi.CreateContainerResponse{ContainerId: "beef"}, nil
}

// StartContainer is the whole life of a container: it writes its log and ends.
func (c *canned) StartContainer(context.Context, *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c.note("start container")
	if c.startErr != nil {
		return nil, c.startErr
	}
	path := filepath.Join(c.pod.Config.LogDirectory, c.container.Config.LogPath)
	if err := os.WriteFile(path, []byte(c.output), 0o600); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.statuses["beef"] = &runtimeapi.ContainerStatus{
		Id: "beef", State: runtimeapi.ContainerState_CONTAINER_EXITED, LogPath: path, ExitCode: c.exitCode, StartedAt: 1, FinishedAt: 2,
	}
	c.mu.Unlock()
	return &runtimeapi.StartContainerResponse{}, nil
}

func (c *canned) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	if c.events == nil {
		return status.Error(codes.Unimplemented, "no events")
	}
	for i, e := range c.happens {
		if err := s.Send(e); err != nil {
			return err
		}
		if i == len(c.happens)-1 {
			return status.Error(codes.Unavailable, "the daemon is stopping")
		}
	}
	for {
		select {
		case <-s.Context().Done():
			return nil
		case e := <-c.events:
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
}

// serve starts the runtime and returns its endpoint.
func (c *canned) serve(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "b") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	socket := filepath.Join(dir, "cri.sock")
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, c)
	runtimeapi.RegisterImageServiceServer(server, c)
	berthv1.RegisterNodeServer(server, c)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
	})
	return "unix://" + socket
}

// result is what one command line gave.
type result struct {
	code     int
	out, err string
}

// berth runs one command line against the runtime.
func (c *canned) berth(t *testing.T, args ...string) result {
	t.Helper()
	return berth(t, append([]string{"--endpoint", c.serve(t)}, args...)...)
}

func berth(t *testing.T, args ...string) result {
	t.Helper()
	t.Setenv(endpointVariable, "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var out, errOut bytes.Buffer
	a := &app{IO: IO{In: null, Out: &out, Err: &errOut}, now: func() time.Time { return epoch }}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errOut)
	code := a.report(root.ExecuteContext(ctx))
	return result{code: code, out: out.String(), err: errOut.String()}
}

func (r result) want(t *testing.T, code int, out string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d; stderr:\n%s", r.code, code, r.err)
	}
	if strings.TrimSpace(r.out) != strings.TrimSpace(out) {
		t.Errorf("stdout is\n%s\nwant\n%s", r.out, out)
	}
}

// complains checks that a command failed with a text.
func (r result) complains(t *testing.T, code int, parts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d; stderr:\n%s", r.code, code, r.err)
	}
	for _, part := range parts {
		if !strings.Contains(r.err, part) {
			t.Errorf("stderr is\n%s\nwant in it\n%s", r.err, part)
		}
	}
	if strings.Contains(r.err, "rpc error") {
		t.Errorf("stderr has words of the transport in it:\n%s", r.err)
	}
}
