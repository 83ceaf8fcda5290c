package pod

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/stats"
)

// writableLayer tells the size of a container's writable layer and when that
// was; nil if it is not known.
func (e *Engine) writableLayer(ctx context.Context, c *container) *runtimeapi.FilesystemUsage {
	size := e.layerSize(ctx, c)
	if size == nil {
		return nil
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp: size.at.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: e.opts.Root},
		UsedBytes: u64(size.bytes), InodesUsed: u64(size.inodes),
	}
}

// cpuUsage has the rate as an average since the reading before this one.
func cpuUsage(f stats.Container, r *rate, began time.Time) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{
		Timestamp: f.At.UnixNano(), UsageCoreNanoSeconds: u64(f.CPU.UsageNanos),
		UsageNanoCores: u64(r.next(f.At, f.CPU.UsageNanos, began)), Psi: pressure(f.CPU.Pressure),
	}
}

func memoryUsage(f stats.Container) *runtimeapi.MemoryUsage {
	m := f.Memory
	usage := &runtimeapi.MemoryUsage{
		Timestamp: f.At.UnixNano(), WorkingSetBytes: u64(m.WorkingSet), UsageBytes: u64(m.Usage), RssBytes: u64(m.RSS),
		PageFaults: u64(m.PageFaults), MajorPageFaults: u64(m.MajorPageFaults), Psi: pressure(m.Pressure),
	}
	if m.Limit > 0 {
		usage.AvailableBytes = u64(m.Available)
	}
	return usage
}

func swapUsage(f stats.Container) *runtimeapi.SwapUsage {
	if f.Swap == nil {
		return nil
	}
	usage := &runtimeapi.SwapUsage{Timestamp: f.At.UnixNano(), SwapUsageBytes: u64(f.Swap.Usage)}
	if f.Swap.Limited {
		usage.SwapAvailableBytes = u64(f.Swap.Available)
	}
	return usage
}

func ioUsage(f stats.Container) *runtimeapi.IoUsage {
	return &runtimeapi.IoUsage{Timestamp: f.At.UnixNano(), Psi: pressure(f.IOPressure)}
}

func pressure(p *stats.PSI) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	data := func(d stats.Pressure) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: d.TotalNanos, Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300}
	}
	return &runtimeapi.PsiStats{Full: data(p.Full), Some: data(p.Some)}
}

func u64(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// podInterface is what the first interface of a pod is called, whichever
// network made it.
const podInterface = "eth0"

// networkUsage counts what went through the interfaces of a pod. A pod on the
// host's network has none of its own.
func networkUsage(netns string) (*runtimeapi.NetworkUsage, error) {
	if netns == "" {
		return nil, nil //nolint:nilnil // absent is what CRI calls it
	}
	usage := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	interfaces, err := stats.ReadInterfaces(netns)
	if err != nil {
		return nil, err
	}
	for _, i := range interfaces {
		figures := &runtimeapi.NetworkInterfaceUsage{
			Name: i.Name, RxBytes: u64(i.Received.Bytes), RxErrors: u64(i.Received.Errors),
			TxBytes: u64(i.Sent.Bytes), TxErrors: u64(i.Sent.Errors),
		}
		if i.Name == podInterface {
			usage.DefaultInterface = figures
		} else {
			usage.Interfaces = append(usage.Interfaces, figures)
		}
	}
	return usage, nil
}
