package pod

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/stats"
)

// statsReaders bounds how many cgroups are read at a time.
const statsReaders = 4

// ContainerStats reads the figures of one container.
func (e *Engine) ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	v, err := e.Container(id)
	if err != nil {
		return nil, err
	}
	st, err := e.readContainer(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("stats of container %s: %w", v.ID, err)
	}
	return st, nil
}

// ListContainerStats reads the figures of every running container that
// matches. One that ends meanwhile is left out.
func (e *Engine) ListContainerStats(ctx context.Context, f Filter) ([]*runtimeapi.ContainerStats, error) {
	return e.collectContainers(ctx, e.runningContainers(f))
}

// SandboxStats reads the figures of one pod with those of its containers.
func (e *Engine) SandboxStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	v, err := e.Sandbox(id)
	if err != nil {
		return nil, err
	}
	st, err := e.readSandbox(ctx, v, e.runningContainers(Filter{SandboxID: v.ID}))
	if err != nil {
		return nil, fmt.Errorf("stats of sandbox %s: %w", v.ID, err)
	}
	return st, nil
}

// ListSandboxStats reads the figures of every ready pod that matches.
func (e *Engine) ListSandboxStats(ctx context.Context, f Filter) ([]*runtimeapi.PodSandboxStats, error) {
	running := e.runningByPod()
	read := func(ctx context.Context, v *Sandbox) (*runtimeapi.PodSandboxStats, error) {
		return e.readSandbox(ctx, v, running[v.ID])
	}
	return collect(ctx, e, "sandbox_id", e.readySandboxes(f), func(v *Sandbox) string { return v.ID }, read)
}

func (e *Engine) runningContainers(f Filter) []*Container {
	running := runtimeapi.ContainerState_CONTAINER_RUNNING
	f.ContainerState = &running
	return e.Containers(f)
}

// runningByPod are all running containers, by the ID of their sandbox.
func (e *Engine) runningByPod() map[string][]*Container {
	byPod := map[string][]*Container{}
	for _, c := range e.runningContainers(Filter{}) {
		byPod[c.SandboxID] = append(byPod[c.SandboxID], c)
	}
	return byPod
}

func (e *Engine) collectContainers(ctx context.Context, containers []*Container) ([]*runtimeapi.ContainerStats, error) {
	return collect(ctx, e, "container_id", containers, func(v *Container) string { return v.ID }, e.readContainer)
}

func (e *Engine) readySandboxes(f Filter) []*Sandbox {
	ready := runtimeapi.PodSandboxState_SANDBOX_READY
	f.SandboxState = &ready
	return e.Sandboxes(f)
}

// collect reads the figures of many objects, in their order. Those which are
// gone by then are left out, and so are, with a word in the log, those which
// cannot be read: one of them must not hide all the others.
func collect[V, S any](ctx context.Context, e *Engine, kind string, views []V, id func(V) string, read func(context.Context, V) (*S, error)) ([]*S, error) {
	found := make([]*S, len(views))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(statsReaders)
	for i, v := range views {
		group.Go(func() error {
			st, err := read(ctx, v)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil && !errdefs.IsNotFound(err) {
				e.opts.Log.WarnContext(ctx, "figures cannot be read", kind, id(v), "error", err)
			}
			if err == nil {
				found[i] = st
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	kept := found[:0]
	for _, st := range found {
		if st != nil {
			kept = append(kept, st)
		}
	}
	return kept, nil
}

func (e *Engine) readContainer(ctx context.Context, v *Container) (*runtimeapi.ContainerStats, error) {
	c, err := e.findContainer(v.ID)
	if err != nil {
		return nil, err
	}
	st := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: v.ID, Metadata: v.Config.GetMetadata(), Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(),
	}}
	st.WritableLayer = e.writableLayer(ctx, c)
	if v.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		now := time.Now().UnixNano()
		st.Cpu, st.Memory = &runtimeapi.CpuUsage{Timestamp: now}, &runtimeapi.MemoryUsage{Timestamp: now}
		return st, nil
	}
	figures, err := stats.ReadBrief(e.opts.Cgroups, v.CgroupPath)
	if err != nil {
		return nil, err
	}
	st.Cpu = cpuUsage(figures, &c.cpu, v.StartedAt)
	st.Memory, st.Swap, st.Io = memoryUsage(figures), swapUsage(figures), ioUsage(figures)
	return st, nil
}

func (e *Engine) readSandbox(ctx context.Context, v *Sandbox, running []*Container) (*runtimeapi.PodSandboxStats, error) {
	s, err := e.findSandbox(v.ID)
	if err != nil {
		return nil, err
	}
	figures, err := stats.ReadBrief(e.opts.Cgroups, v.CgroupParent)
	if err != nil {
		return nil, err
	}
	containers, err := e.collectContainers(ctx, running)
	if err != nil {
		return nil, err
	}
	network, err := networkUsage(v.NetNS)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: v.ID, Metadata: v.Config.GetMetadata(), Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(),
		},
		Linux: &runtimeapi.LinuxPodSandboxStats{
			Cpu: cpuUsage(figures, &s.cpu, v.CreatedAt), Memory: memoryUsage(figures), Io: ioUsage(figures),
			Network: network, Containers: containers,
			Process: &runtimeapi.ProcessUsage{Timestamp: figures.At.UnixNano(), ProcessCount: u64(figures.Pids.Processes)},
		},
	}, nil
}
