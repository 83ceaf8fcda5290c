package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "github.com/berth-runtime/berth/api/berth/v1"
	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/stream"
	"github.com/berth-runtime/berth/internal/telemetry"
)

// The edge is tested with an engine and an image store that answer what a test
// wants: what is under test is the translation, over real gRPC on a real socket.

// testTimeout bounds every wait of these tests.
const testTimeout = 20 * time.Second

// fakeEngine holds views, and answers changes with do.
type fakeEngine struct {
	Engine // calls that no test needs

	sandboxes  []*pod.Sandbox
	containers []*pod.Container
	// do performs every call that changes something; nil is success.
	do       func(ctx context.Context, call string) error
	handlers map[string]handlers.Info
	network  error
	events   chan pod.Event
	filter   pod.Filter // of the last list call
	stats    []*runtimeapi.PodSandboxStats
	figures  []*runtimeapi.ContainerStats
	metrics  []*runtimeapi.PodSandboxMetrics
}

func (e *fakeEngine) perform(ctx context.Context, format string, args ...any) error {
	if e.do == nil {
		return nil
	}
	return e.do(ctx, fmt.Sprintf(format, args...))
}

func (e *fakeEngine) RunSandbox(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	return "new-sandbox", e.perform(ctx, "run %s %q", cfg.GetMetadata().GetName(), handler)
}

func (e *fakeEngine) StopSandbox(ctx context.Context, id string) error {
	return e.perform(ctx, "stop sandbox %s", id)
}

func (e *fakeEngine) RemoveSandbox(ctx context.Context, id string) error {
	return e.perform(ctx, "remove sandbox %s", id)
}

func (e *fakeEngine) UpdateSandbox(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	return e.perform(ctx, "update sandbox %s %d %d", id, overhead.GetCpuShares(), resources.GetCpuShares())
}

func (e *fakeEngine) CreateContainer(ctx context.Context, sandboxID string, cfg *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	return "new-container", e.perform(ctx, "create %s in %s", cfg.GetMetadata().GetName(), sandboxID)
}

func (e *fakeEngine) CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error {
	return e.perform(ctx, "checkpoint %s %s %v", id, location, timeout)
}

func (e *fakeEngine) CheckpointSandbox(ctx context.Context, id, output string, containerIDs []string, options map[string]string) error {
	return e.perform(ctx, "checkpoint pod %s %s %v %v", id, output, containerIDs, options)
}

func (e *fakeEngine) RestoreSandbox(ctx context.Context, r pod.Restore) (string, map[string]string, error) {
	err := e.perform(ctx, "restore %s %s %q %v", r.Path, r.Config.Metadata.Name, r.Handler, r.Options)
	return "restored", map[string]string{"one": "1", "two": "2"}, err
}

func (e *fakeEngine) StartContainer(ctx context.Context, id string) error {
	return e.perform(ctx, "start %s", id)
}

func (e *fakeEngine) StopContainer(ctx context.Context, id string, timeout time.Duration) error {
	return e.perform(ctx, "stop %s %v", id, timeout)
}

func (e *fakeEngine) RemoveContainer(ctx context.Context, id string) error {
	return e.perform(ctx, "remove %s", id)
}

func (e *fakeEngine) UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	return e.perform(ctx, "update %s %d", id, r.GetCpuShares())
}

func (e *fakeEngine) ReopenLog(ctx context.Context, id string) error {
	return e.perform(ctx, "reopen %s", id)
}

func (e *fakeEngine) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (pod.ExecResult, error) {
	return pod.ExecResult{Stdout: []byte("out"), Stderr: []byte("err"), ExitCode: 3}, e.perform(ctx, "exec %s %q %v", id, cmd, timeout)
}

func (e *fakeEngine) Sandbox(id string) (*pod.Sandbox, error) {
	for _, s := range e.sandboxes {
		if strings.HasPrefix(s.ID, id) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
}

func (e *fakeEngine) Sandboxes(f pod.Filter) []*pod.Sandbox {
	e.filter = f
	return e.sandboxes
}

func (e *fakeEngine) Container(id string) (*pod.Container, error) {
	for _, c := range e.containers {
		if strings.HasPrefix(c.ID, id) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
}

func (e *fakeEngine) Containers(f pod.Filter) []*pod.Container {
	e.filter = f
	return e.containers
}

func (e *fakeEngine) ListContainerStats(_ context.Context, f pod.Filter) ([]*runtimeapi.ContainerStats, error) {
	e.filter = f
	if e.figures != nil {
		return e.figures, nil
	}
	return []*runtimeapi.ContainerStats{{Attributes: &runtimeapi.ContainerAttributes{Id: "c1"}}}, nil
}

func (e *fakeEngine) ListSandboxStats(_ context.Context, f pod.Filter) ([]*runtimeapi.PodSandboxStats, error) {
	e.filter = f
	return e.stats, nil
}

func (e *fakeEngine) MetricDescriptors() []*runtimeapi.MetricDescriptor {
	return []*runtimeapi.MetricDescriptor{{Name: "m", Help: "h", LabelKeys: []string{"k"}}}
}

func (e *fakeEngine) ListSandboxMetrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	return e.metrics, e.perform(ctx, "metrics")
}

func (e *fakeEngine) Subscribe() (next func(context.Context) (pod.Event, error), cancel func()) {
	return func(ctx context.Context) (pod.Event, error) {
		select {
		case event := <-e.events:
			return event, nil
		case <-ctx.Done():
			return pod.Event{}, ctx.Err()
		}
	}, func() {}
}

func (e *fakeEngine) Handlers() map[string]handlers.Info { return e.handlers }

func (e *fakeEngine) DefaultHandler() string { return "crun" }

func (e *fakeEngine) NetworkReady() error { return e.network }

// fakeImages is an image store with some images in it.
type fakeImages struct {
	images   []*image.Image
	pull     func(ctx context.Context, ref string, auth image.Auth) (string, error)
	progress chan image.Progress
	removed  []string
}

func (f *fakeImages) Pull(ctx context.Context, ref string, auth image.Auth) (string, error) {
	return f.pull(ctx, ref, auth)
}

func (f *fakeImages) WatchPull(context.Context, string) (<-chan image.Progress, error) {
	return f.progress, nil
}

func (f *fakeImages) Resolve(ref string) (*image.Image, error) {
	if strings.Contains(ref, "//") {
		return nil, fmt.Errorf("reference %q: %w", ref, errdefs.ErrInvalidArgument)
	}
	for _, img := range f.images {
		if img.ID == ref || len(img.Tags) > 0 && img.Tags[0] == ref {
			return img, nil
		}
	}
	return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
}

func (f *fakeImages) List() []*image.Image { return f.images }

func (f *fakeImages) Remove(_ context.Context, ref string) error {
	f.removed = append(f.removed, ref)
	_, err := f.Resolve(ref)
	return err
}

func (f *fakeImages) FsInfo(context.Context) (image.FsInfo, error) {
	return image.FsInfo{Mountpoint: "/images", UsedBytes: 7, Inodes: 3, At: time.Unix(5, 0)}, nil
}

// fakeSessions grants everything and notes what ended.
type fakeSessions struct {
	granted, ended []string
}

func (f *fakeSessions) Exec(id string, cmd []string, p stream.Pipes) (string, error) {
	f.granted = append(f.granted, fmt.Sprintf("exec %s %q %+v", id, cmd, p))
	return "http://127.0.0.1:1/exec/x", nil
}

func (f *fakeSessions) Attach(id string, p stream.Pipes) (string, error) {
	f.granted = append(f.granted, fmt.Sprintf("attach %s %+v", id, p))
	return "http://127.0.0.1:1/attach/x", nil
}

func (f *fakeSessions) PortForward(id string, ports []int32) (string, error) {
	f.granted = append(f.granted, fmt.Sprintf("portforward %s %v", id, ports))
	return "http://127.0.0.1:1/portforward/x", nil
}

func (f *fakeSessions) End(id string) { f.ended = append(f.ended, id) }

// edge is a server under test and its clients.
type edge struct {
	engine   *fakeEngine
	images   *fakeImages
	sessions *fakeSessions
	log      *logBuffer
	server   *Server

	runtime runtimeapi.RuntimeServiceClient
	image   runtimeapi.ImageServiceClient
	node    berthv1.NodeClient
}

// start serves an edge on a socket of its own until the test ends.
func start(t *testing.T) *edge {
	t.Helper()
	e := &edge{
		engine: &fakeEngine{
			handlers: map[string]handlers.Info{
				"crun": {Features: ociruntime.Features{RecursiveReadOnly: true, Checkpoint: true}},
				"runc": {Problem: "no such program"},
			},
			events: make(chan pod.Event, 8),
		},
		images:   &fakeImages{progress: make(chan image.Progress, 8)},
		sessions: &fakeSessions{},
		log:      &logBuffer{},
	}
	e.server = New(Options{
		Engine: e.engine, Images: e.images, Sessions: e.sessions,
		Meter:        telemetry.NewMetrics("test"),
		Log:          slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Version:      "1.2.3",
		CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS,
		Config:       map[string]string{"stateDir": "/run/x"},
		CheckCRIU:    func(context.Context) error { return errors.New("too old a kernel") },
	})
	endpoint := "unix://" + filepath.Join(socketDir(t), "berth.sock")
	l, err := Listen(t.Context(), endpoint, -1)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- e.server.Serve(l) }()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("close the client: %v", err)
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), testTimeout)
		defer cancel()
		if err := e.server.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	e.runtime = runtimeapi.NewRuntimeServiceClient(conn)
	e.image = runtimeapi.NewImageServiceClient(conn)
	e.node = berthv1.NewNodeClient(conn)
	return e
}

// socketDir is a directory whose path leaves room for a socket's name.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// webPod is a sandbox with everything set.
func webPod() *pod.Sandbox {
	return &pod.Sandbox{
		ID: "sandbox1-0123456789",
		Config: &runtimeapi.PodSandboxConfig{
			Metadata:    &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "shop", Uid: "u-1", Attempt: 2},
			Labels:      map[string]string{"io.kubernetes.pod.uid": "u-1"},
			Annotations: map[string]string{"a": "1"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		},
		Handler: "runc", CreatedAt: time.Unix(100, 5), State: runtimeapi.PodSandboxState_SANDBOX_READY,
		IPs: []string{"10.85.0.7", "fd00::7", "fd00::8"}, NetNS: "/run/ns/1/net",
		Stage: "cni-add", StageSince: time.Now().Add(-time.Minute),
	}
}

// nginx is a container of webPod with everything set.
func nginx() *pod.Container {
	return &pod.Container{
		ID: "container1-0123456789", SandboxID: webPod().ID,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "nginx", Attempt: 1},
			Image:    &runtimeapi.ImageSpec{Image: "sha256:aa"},
			Mounts: []*runtimeapi.Mount{{
				ContainerPath: "/data", HostPath: "/srv", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL,
			}},
			Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "1"},
		},
		ImageID: "sha256:aa", ImageRef: "docker.io/library/nginx@sha256:bb",
		State: runtimeapi.ContainerState_CONTAINER_RUNNING, CreatedAt: time.Unix(200, 0), StartedAt: time.Unix(201, 0),
		LogPath: "/var/log/nginx/0.log", StopSignal: runtimeapi.Signal_SIGNAL_SIGQUIT, PID: 4711,
		User:      &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: 101, Gid: 101, SupplementalGroups: []int64{101}}},
		Resources: &runtimeapi.LinuxContainerResources{CpuShares: 512},
	}
}
