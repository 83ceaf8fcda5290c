package pod

import (
	"context"
	"errors"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod/metric"
	"github.com/berth-runtime/berth/internal/stats"
)

// MetricDescriptors describes every metric that this host gives. The answer is
// the same as long as the daemon runs.
func (e *Engine) MetricDescriptors() []*runtimeapi.MetricDescriptor { return e.catalog().Descriptors() }

// ListSandboxMetrics reads the metrics of every ready pod and its running
// containers. What ends meanwhile is left out.
func (e *Engine) ListSandboxMetrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	filesystem, err := stats.ReadFilesystem(e.opts.Root)
	if err != nil {
		return nil, err
	}
	running := e.runningByPod()
	read := func(ctx context.Context, v *Sandbox) (*runtimeapi.PodSandboxMetrics, error) {
		return e.sandboxMetrics(ctx, v, running[v.ID], &filesystem)
	}
	return collect(ctx, e, "sandbox_id", e.readySandboxes(Filter{}), func(v *Sandbox) string { return v.ID }, read)
}

func (e *Engine) sandboxMetrics(ctx context.Context, v *Sandbox, containers []*Container, on *stats.Filesystem) (*runtimeapi.PodSandboxMetrics, error) {
	usage, err := stats.Read(e.opts.Cgroups, v.CgroupParent)
	if err != nil {
		return nil, err
	}
	reading := metric.Reading{Now: time.Now(), Started: v.CreatedAt, Usage: &usage, Labels: metric.Labels{
		ID: v.CgroupParent, Name: v.ID, Namespace: v.Config.GetMetadata().GetNamespace(), Pod: v.Config.GetMetadata().GetName(),
	}}
	if v.NetNS != "" {
		if reading.Interfaces, err = stats.ReadInterfaces(v.NetNS); err != nil {
			return nil, err
		}
	}
	answer := &runtimeapi.PodSandboxMetrics{PodSandboxId: v.ID, Metrics: e.catalog().Pod(&reading)}
	read := func(ctx context.Context, c *Container) (*runtimeapi.ContainerMetrics, error) {
		return e.containerMetrics(ctx, v, c, on)
	}
	answer.ContainerMetrics, err = collect(ctx, e, "container_id", containers, func(c *Container) string { return c.ID }, read)
	return answer, err
}

func (e *Engine) containerMetrics(ctx context.Context, of *Sandbox, v *Container, on *stats.Filesystem) (*runtimeapi.ContainerMetrics, error) {
	c, err := e.findContainer(v.ID)
	if err != nil {
		return nil, err
	}
	usage, err := stats.Read(e.opts.Cgroups, v.CgroupPath)
	if err != nil {
		return nil, err
	}
	limits, limitsErr := stats.ReadMemoryLimits(e.opts.Cgroups, v.CgroupPath)
	processes, processErr := stats.ReadProcesses(ctx, e.opts.Cgroups, v.CgroupPath)
	files, filesErr := stats.OpenFilesLimit(v.PID)
	if err := errors.Join(limitsErr, processErr, filesErr); err != nil {
		return nil, err
	}
	reading := metric.Reading{
		Now: time.Now(), Started: v.StartedAt, Usage: &usage, Limits: &limits, Processes: &processes, OpenFiles: files, Filesystem: on,
		Labels: metric.Labels{
			ID: v.CgroupPath, Name: v.ID, Image: imageLabel(v), Container: v.Config.GetMetadata().GetName(),
			Namespace: of.Config.GetMetadata().GetNamespace(), Pod: of.Config.GetMetadata().GetName(),
		},
	}
	if size := e.layerSize(ctx, c); size != nil {
		reading.LayerBytes = &size.bytes
	}
	return &runtimeapi.ContainerMetrics{ContainerId: v.ID, Metrics: e.catalog().Container(&reading)}, nil
}

// imageLabel is the image's name as the user wrote it, if kubelet passed it on.
func imageLabel(v *Container) string {
	if name := v.Config.GetImage().GetUserSpecifiedImage(); name != "" {
		return name
	}
	return v.Config.GetImage().GetImage()
}
