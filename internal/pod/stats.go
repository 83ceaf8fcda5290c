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
	running := runtimeapi.ContainerState_CONTAINER_RUNNING
	f.ContainerState = &running
	return collect(ctx, e.Containers(f), e.readContainer)
}

// SandboxStats reads the figures of one pod with those of its containers.
func (e *Engine) SandboxStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	v, err := e.Sandbox(id)
	if err != nil {
		return nil, err
	}
	st, err := e.readSandbox(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("stats of sandbox %s: %w", v.ID, err)
	}
	return st, nil
}

// ListSandboxStats reads the figures of every ready pod that matches.
func (e *Engine) ListSandboxStats(ctx context.Context, f Filter) ([]*runtimeapi.PodSandboxStats, error) {
	ready := runtimeapi.PodSandboxState_SANDBOX_READY
	f.SandboxState = &ready
	return collect(ctx, e.Sandboxes(f), e.readSandbox)
}

// collect reads the figures of many objects, in their order. Those which are
// gone by then are left out; any other failure is one of the whole.
func collect[V, S any](ctx context.Context, views []V, read func(context.Context, V) (*S, error)) ([]*S, error) {
	found := make([]*S, len(views))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(statsReaders)
	for i, v := range views {
		group.Go(func() error {
			st, err := read(ctx, v)
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
			found[i] = st
			return ctx.Err()
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
	st := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: v.ID, Metadata: v.Config.GetMetadata(), Labels: v.Config.GetLabels(), Annotations: v.Config.GetAnnotations(),
	}}
	st.WritableLayer = e.writableLayer(ctx, v)
	if v.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		now := time.Now().UnixNano()
		st.Cpu, st.Memory = &runtimeapi.CpuUsage{Timestamp: now}, &runtimeapi.MemoryUsage{Timestamp: now}
		return st, nil
	}
	figures, err := stats.Read(e.opts.Cgroups, v.CgroupPath)
	if err != nil {
		return nil, err
	}
	st.Cpu, st.Memory, st.Swap, st.Io = cpuUsage(figures), memoryUsage(figures), swapUsage(figures), ioUsage(figures)
	return st, nil
}

func (e *Engine) readSandbox(ctx context.Context, v *Sandbox) (*runtimeapi.PodSandboxStats, error) {
	figures, err := stats.Read(e.opts.Cgroups, v.CgroupParent)
	if err != nil {
		return nil, err
	}
	containers, err := e.ListContainerStats(ctx, Filter{SandboxID: v.ID})
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
			Cpu: cpuUsage(figures), Memory: memoryUsage(figures), Io: ioUsage(figures), Network: network, Containers: containers,
			Process: &runtimeapi.ProcessUsage{Timestamp: figures.At.UnixNano(), ProcessCount: u64(figures.Pids.Processes)},
		},
	}, nil
}
