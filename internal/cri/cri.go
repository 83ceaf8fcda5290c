// Package cri is the gRPC edge of the daemon: it serves the Container Runtime
// Interface v1 and what Berth offers beside it on one unix socket.
//
// It validates the shape of requests, translates them to calls of the pod
// engine, the image store and the stream server, and translates what they
// answer back. It has no logic of its own. Start reading at server.go; each
// other file is one family of RPCs:
//
//	runtime.go    Version, Status, RuntimeConfig
//	sandbox.go    pod sandboxes
//	container.go  containers
//	checkpoint.go checkpoints of containers and pods
//	exec.go       ExecSync and the URLs of streaming sessions
//	stats.go      figures
//	metrics.go    metrics, as cAdvisor names them
//	events.go     GetContainerEvents
//	image.go      the image service
//	node.go       berth.v1
//	intercept.go  what is common to all calls: deadline, log line, histogram, panics
//	errors.go     kinds of errors to gRPC codes, the only place that knows both
package cri

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/stream"
)

// Engine is what the edge needs of the pod engine. IDs may be unambiguous
// prefixes everywhere; what it answers is shared and must not be modified.
type Engine interface {
	// RunSandbox answers when the sandbox is READY. After an error nothing
	// of it is left, and the same request may be sent again.
	RunSandbox(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (id string, err error)
	// StopSandbox and RemoveSandbox succeed for what does not exist.
	StopSandbox(ctx context.Context, id string) error
	RemoveSandbox(ctx context.Context, id string) error
	// Sandbox is an ErrNotFound if there is none.
	Sandbox(id string) (*pod.Sandbox, error)
	Sandboxes(f pod.Filter) []*pod.Sandbox
	UpdateSandbox(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error

	CreateContainer(ctx context.Context, sandboxID string, cfg *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	// StopContainer and RemoveContainer succeed for what does not exist.
	StopContainer(ctx context.Context, id string, timeout time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	// Container is an ErrNotFound if there is none.
	Container(id string) (*pod.Container, error)
	Containers(f pod.Filter) []*pod.Container
	UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error
	ReopenLog(ctx context.Context, id string) error

	// CheckpointContainer answers when the archive is complete; a timeout of zero is
	// the default. CheckpointSandbox and RestoreSandbox leave nothing after an error.
	CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error
	CheckpointSandbox(ctx context.Context, id, output string, containerIDs []string, options map[string]string) error
	RestoreSandbox(ctx context.Context, r pod.Restore) (id string, containers map[string]string, err error)

	// ExecSync is a context.DeadlineExceeded when timeout has passed; zero is none.
	ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (pod.ExecResult, error)
	Exec(ctx context.Context, id string, cmd []string, s pod.Streams) (exitCode int, err error)
	Attach(ctx context.Context, id string, s pod.Streams) error

	ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error)
	ListContainerStats(ctx context.Context, f pod.Filter) ([]*runtimeapi.ContainerStats, error)
	SandboxStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error)
	ListSandboxStats(ctx context.Context, f pod.Filter) ([]*runtimeapi.PodSandboxStats, error)
	// MetricDescriptors never change; ListSandboxMetrics answers no others.
	MetricDescriptors() []*runtimeapi.MetricDescriptor
	ListSandboxMetrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error)

	// Subscribe delivers what happens from now on until cancel is called or the
	// engine closes; next waits for the next event. A subscriber that is too far
	// behind gets an ErrResourceExhausted.
	Subscribe() (next func(context.Context) (pod.Event, error), cancel func())

	// Handlers are the runtime handlers by name; DefaultHandler is the name
	// of the one that "" stands for.
	Handlers() map[string]handlers.Info
	DefaultHandler() string
	// NetworkReady is nil, or says why pods get no network.
	NetworkReady() error
}

// Images is what the edge needs of the image store.
type Images interface {
	// Pull answers the image's ID. Pulls of one reference join.
	Pull(ctx context.Context, ref string, auth image.Auth) (id string, err error)
	// WatchPull delivers the progress of a pull in flight until it ends.
	WatchPull(ctx context.Context, ref string) (<-chan image.Progress, error)
	// Resolve is an ErrNotFound for what is not here and an
	// ErrInvalidArgument for what is no reference.
	Resolve(ref string) (*image.Image, error)
	List() []*image.Image
	// Remove removes every name of the image.
	Remove(ctx context.Context, ref string) error
	FsInfo(ctx context.Context) (image.FsInfo, error)
}

// Sessions is what the edge needs of the stream server.
type Sessions interface {
	Exec(containerID string, cmd []string, p stream.Pipes) (url string, err error)
	Attach(containerID string, p stream.Pipes) (url string, err error)
	PortForward(sandboxID string, ports []int32) (url string, err error)
	// End ends the sessions of a container or sandbox that is gone.
	End(ownerID string)
}

// Meter is where calls are counted.
type Meter interface {
	Call(method string) (done func(code string))
	Panicked(method string)
}
