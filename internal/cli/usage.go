package cli

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// usageItem is what a container uses, as JSON and YAML show it. The names are
// stable; what the runtime does not tell is null.
type usageItem struct {
	ID        string        `json:"id"`
	Name      string        `json:"name"`
	Pod       podReference  `json:"pod"`
	At        *time.Time    `json:"at"`
	CPU       cpuItem       `json:"cpu"`
	Memory    memoryItem    `json:"memory"`
	Swap      *uint64       `json:"swapBytes"`
	Processes *uint64       `json:"processes"`
	Network   *trafficItem  `json:"podNetwork"`
	Disk      *trafficItem  `json:"disk"`
	Layer     *layerItem    `json:"writableLayer"`
	Pressure  *pressureItem `json:"pressure"`
}

// cpuItem is the use of CPUs; 100 percent is one of them.
type cpuItem struct {
	Nanoseconds *uint64  `json:"nanoseconds"`
	Percent     *float64 `json:"percent"`
}

type memoryItem struct {
	WorkingSet *uint64 `json:"workingSetBytes"`
	Usage      *uint64 `json:"usageBytes"`
	RSS        *uint64 `json:"rssBytes"`
	// Limit is null without one.
	Limit *uint64 `json:"limitBytes"`
}

// trafficItem counts bytes in both directions.
type trafficItem struct {
	In  uint64 `json:"inBytes"`
	Out uint64 `json:"outBytes"`
}

type layerItem struct {
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
}

// pressureItem tells in which share of the last ten seconds some task waited.
type pressureItem struct {
	CPU    float64 `json:"cpuPercent"`
	Memory float64 `json:"memoryPercent"`
	IO     float64 `json:"ioPercent"`
}

// usages reads what containers use, again and again. It remembers the reading
// before, since not every runtime tells a rate.
type usages struct {
	node   *node
	before map[string]*runtimeapi.CpuUsage
	// needed tells that a rate could not be computed for want of a reading
	// before.
	needed bool
}

// read asks for the containers that match. Beside the stats it looks at those
// of pods and at metrics, which not every runtime has.
func (u *usages) read(ctx context.Context, match statsMatch) ([]usageItem, error) {
	ctx, cancel := u.node.ask(ctx)
	defer cancel()
	listed, err := u.node.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return nil, err
	}
	pods, err := u.node.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil && status.Code(err) != codes.Unimplemented {
		return nil, err
	}
	metrics, err := u.node.metrics(ctx)
	if err != nil && status.Code(err) != codes.Unimplemented {
		return nil, err
	}
	all, err := u.node.inventory(ctx)
	if err != nil {
		return nil, err
	}
	items, cpu := []usageItem{}, map[string]*runtimeapi.CpuUsage{}
	u.needed = false
	for _, st := range listed.Stats {
		if !match(st) {
			continue
		}
		item := newUsageItem(st, all)
		item.CPU.Percent = u.percent(st)
		cpu[item.ID] = st.Cpu
		items = append(items, item)
	}
	u.before = cpu
	addNetwork(items, pods.GetStats())
	addMetrics(items, metrics)
	slices.SortStableFunc(items, func(a, b usageItem) int {
		return cmp.Or(cmp.Compare(a.Pod.Namespace, b.Pod.Namespace), cmp.Compare(a.Pod.Name, b.Pod.Name), cmp.Compare(a.Name, b.Name))
	})
	return items, nil
}

// percent is the rate that the runtime tells, or that since the reading before.
func (u *usages) percent(st *runtimeapi.ContainerStats) *float64 {
	const percent = float64(time.Second) / 100 // of a CPU, in nanoseconds a second
	if rate := st.Cpu.GetUsageNanoCores(); rate != nil {
		used := float64(rate.Value) / percent
		return &used
	}
	before := u.before[st.Attributes.GetId()]
	past, grown := st.Cpu.GetTimestamp()-before.GetTimestamp(), number(st.Cpu.GetUsageCoreNanoSeconds())
	if before == nil || past <= 0 || grown == nil || *grown < before.GetUsageCoreNanoSeconds().GetValue() {
		u.needed = u.needed || before == nil && grown != nil
		return nil
	}
	perSecond := float64(*grown-before.GetUsageCoreNanoSeconds().GetValue()) / time.Duration(past).Seconds()
	used := perSecond / percent
	return &used
}

func newUsageItem(st *runtimeapi.ContainerStats, all *inventory) usageItem {
	m := st.Memory
	item := usageItem{
		ID: st.Attributes.GetId(), Name: st.Attributes.GetMetadata().GetName(), At: moment(st.Cpu.GetTimestamp()),
		CPU:    cpuItem{Nanoseconds: number(st.Cpu.GetUsageCoreNanoSeconds())},
		Memory: memoryItem{WorkingSet: number(m.GetWorkingSetBytes()), Usage: number(m.GetUsageBytes()), RSS: number(m.GetRssBytes())},
		Swap:   number(st.Swap.GetSwapUsageBytes()),
	}
	if left := m.GetAvailableBytes(); left != nil && item.Memory.WorkingSet != nil {
		limit := left.Value + *item.Memory.WorkingSet
		item.Memory.Limit = &limit
	}
	if used := st.WritableLayer.GetUsedBytes(); used != nil {
		item.Layer = &layerItem{Bytes: used.Value, Inodes: st.WritableLayer.GetInodesUsed().GetValue()}
	}
	cpu, memory, io := st.Cpu.GetPsi().GetSome(), m.GetPsi().GetSome(), st.Io.GetPsi().GetSome()
	if cpu != nil || memory != nil || io != nil {
		item.Pressure = &pressureItem{CPU: cpu.GetAvg10(), Memory: memory.GetAvg10(), IO: io.GetAvg10()}
	}
	for _, c := range all.containers {
		if c.Id == item.ID {
			pod := all.podOf(c)
			item.Pod = podReference{
				ID: c.PodSandboxId, Name: pod.GetMetadata().GetName(),
				Namespace: pod.GetMetadata().GetNamespace(), UID: pod.GetMetadata().GetUid(),
			}
		}
	}
	return item
}

// number is a value of the CRI that may be absent.
func number(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

// addNetwork adds the traffic of the pods: containers of one pod share it.
func addNetwork(items []usageItem, pods []*runtimeapi.PodSandboxStats) {
	networks := map[string]*trafficItem{}
	for _, pod := range pods {
		network := pod.GetLinux().GetNetwork()
		if network == nil {
			continue
		}
		sum := &trafficItem{}
		interfaces := network.Interfaces
		// Some runtimes list the default interface among the others too.
		if d := network.DefaultInterface; d != nil && !slices.ContainsFunc(interfaces, func(i *runtimeapi.NetworkInterfaceUsage) bool { return i.Name == d.Name }) {
			interfaces = append(slices.Clone(interfaces), d)
		}
		for _, i := range interfaces {
			sum.In += i.GetRxBytes().GetValue()
			sum.Out += i.GetTxBytes().GetValue()
		}
		networks[pod.GetAttributes().GetId()] = sum
	}
	for i := range items {
		items[i].Network = networks[items[i].Pod.ID]
	}
}

// addMetrics adds what only metrics tell of a container.
func addMetrics(items []usageItem, metrics []metricItem) {
	byID := make(map[string]*usageItem, len(items))
	for i := range items {
		byID[items[i].ID] = &items[i]
	}
	for _, m := range metrics {
		item := byID[m.ID]
		if item == nil {
			continue
		}
		switch strings.TrimPrefix(m.Name, metricBase) {
		case "processes":
			item.Processes = &m.Value
		case "fs_reads_bytes_total":
			item.disk().In += m.Value
		case "fs_writes_bytes_total":
			item.disk().Out += m.Value
		}
	}
}

func (u *usageItem) disk() *trafficItem {
	if u.Disk == nil {
		u.Disk = &trafficItem{}
	}
	return u.Disk
}
