package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/stats"
)

// usageAge is how old the measured size of a writable layer may be: measuring
// walks the layer, and kubelet asks every ten seconds.
const usageAge = time.Minute

// usageCache remembers the sizes of writable layers. One is measured at a time.
type usageCache struct {
	measuring sync.Mutex
	mu        sync.Mutex
	sizes     map[string]layerUsage
}

type layerUsage struct {
	bytes, inodes uint64
	at            time.Time
}

func (u *usageCache) get(key string) (layerUsage, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	l, ok := u.sizes[key]
	return l, ok
}

func (u *usageCache) put(key string, l layerUsage) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sizes == nil {
		u.sizes = map[string]layerUsage{}
	}
	u.sizes[key] = l
}

func (u *usageCache) drop(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.sizes, key)
}

// writableLayer tells the size of a container's writable layer as of at most
// usageAge ago, and when that was; nil if it cannot be measured.
func (e *Engine) writableLayer(ctx context.Context, v *Container) *runtimeapi.FilesystemUsage {
	l, ok := e.usage.get(v.SnapshotKey)
	if !ok || time.Since(l.at) > usageAge {
		fresh, err := e.measureLayer(ctx, v.SnapshotKey)
		if err == nil {
			l, ok = fresh, true
		} else {
			e.opts.Log.Debug("measure writable layer", "container_id", v.ID, "error", err)
		}
	}
	if !ok {
		return nil
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp: l.at.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: e.opts.Root},
		UsedBytes: u64(l.bytes), InodesUsed: u64(l.inodes),
	}
}

func (e *Engine) measureLayer(ctx context.Context, key string) (layerUsage, error) {
	e.usage.measuring.Lock()
	defer e.usage.measuring.Unlock()
	if l, ok := e.usage.get(key); ok && time.Since(l.at) <= usageAge {
		return l, nil
	}
	l := layerUsage{at: time.Now()}
	var err error
	if l.bytes, l.inodes, err = e.opts.Images.RootfsUsage(ctx, key); err != nil {
		return l, err
	}
	e.usage.put(key, l)
	return l, nil
}

func cpuUsage(f stats.Container) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{Timestamp: f.At.UnixNano(), UsageCoreNanoSeconds: u64(f.CPU.UsageNanos), Psi: pressure(f.CPU.Pressure)}
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
	if f.Swap.Limit > 0 {
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

// networkUsage counts what went through the interfaces of a pod. A pod on the
// host's network has none of its own.
func networkUsage(netns string) (*runtimeapi.NetworkUsage, error) {
	if netns == "" {
		return nil, nil //nolint:nilnil // absent is what CRI calls it
	}
	usage := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	err := namespace.Do(netns, func() error {
		links, err := netlink.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
		for _, link := range links {
			a := link.Attrs()
			if a.Name == "lo" || a.Statistics == nil {
				continue
			}
			s := a.Statistics
			i := &runtimeapi.NetworkInterfaceUsage{
				Name: a.Name, RxBytes: u64(s.RxBytes), RxErrors: u64(s.RxErrors), TxBytes: u64(s.TxBytes), TxErrors: u64(s.TxErrors),
			}
			if a.Name == "eth0" {
				usage.DefaultInterface = i
			}
			usage.Interfaces = append(usage.Interfaces, i)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the pod's interfaces: %w", err)
	}
	return usage, nil
}
