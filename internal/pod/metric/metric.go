// Package metric turns readings of the kernel into the metrics of CRI: the
// names, help texts and labels of cAdvisor, so that dashboards and alerts go on
// working when kubelet asks the runtime instead.
//
// One table lists them all. Which of them a host can give is decided once, by
// [New]: what is described is what is sent.
package metric

import (
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/stats"
)

// Labels are what every metric carries. They are cAdvisor's: ID is the path of
// the cgroup, Name the ID of the container or sandbox. Image and Container are
// empty for what is counted for a whole pod.
type Labels struct {
	ID, Name, Image, Namespace, Pod, Container string
}

// baseKeys names the Labels, in the order of their values.
var baseKeys = []string{"id", "name", "image", "namespace", "pod", "container"}

func (l Labels) values() []string {
	return []string{l.ID, l.Name, l.Image, l.Namespace, l.Pod, l.Container}
}

// Reading is what was read of one container or pod. What is nil or zero was not
// read, and gives no metric.
type Reading struct {
	Labels Labels
	// Now is when it was read, Started when its subject began.
	Now, Started time.Time
	Usage        *stats.Container
	Limits       *stats.MemoryLimits
	Processes    *stats.Processes
	// OpenFiles is the soft limit of the container's first process.
	OpenFiles uint64
	// Filesystem is the one with the writable layer, LayerBytes the layer's
	// size, nil until it is known.
	Filesystem *stats.Filesystem
	LayerBytes *uint64
	Interfaces []stats.Interface

	disks []namedDisk
}

// family is one metric: what it is called, and how it follows from a reading.
type family struct {
	name, help string
	// keys are labels beside the base ones.
	keys []string
	// gauge tells that it is not a counter.
	gauge bool
	// of tells whether it is for containers, pods or both.
	of subject
	// given tells which hosts can give it; nil is all.
	given *condition
	// read emits its samples, none if the reading has nothing for it.
	read func(r *Reading, emit emit)
}

// condition is what a host must have, in words too.
type condition struct {
	holds func(stats.Abilities) bool
	words string
}

var (
	hasCPU        = &condition{func(a stats.Abilities) bool { return a.CPU }, "the cpu controller"}
	hasMemory     = &condition{func(a stats.Abilities) bool { return a.Memory }, "the memory controller"}
	hasMemoryPeak = &condition{func(a stats.Abilities) bool { return a.MemoryPeak }, "cgroup v1, or Linux 5.19"}
	hasSwap       = &condition{func(a stats.Abilities) bool { return a.Swap }, "accounting of swap"}
	hasIO         = &condition{func(a stats.Abilities) bool { return a.IO }, "the io or blkio controller"}
	hasPIDs       = &condition{func(a stats.Abilities) bool { return a.PIDs }, "the pids controller"}
	hasHugetlb    = &condition{func(a stats.Abilities) bool { return a.Hugetlb }, "the hugetlb controller"}
	hasHugePeak   = &condition{func(a stats.Abilities) bool { return a.HugetlbPeak }, "the hugetlb controller of cgroup v1"}
	hasPressure   = &condition{func(a stats.Abilities) bool { return a.Pressure }, "a cgroup v2 hierarchy and pressure information in the kernel"}
)

// emit adds a sample with the values of the family's keys.
type emit func(value uint64, labels ...string)

// subject is what a metric is about.
type subject int

const (
	container subject = 1 << iota
	pod
	both = container | pod
)

// Catalog is what one host gives. It never changes.
type Catalog struct {
	families    []family
	descriptors []*runtimeapi.MetricDescriptor
}

// New chooses the metrics that a host with these abilities can give.
func New(a stats.Abilities) *Catalog {
	c := &Catalog{}
	for _, group := range [][]family{cpuFamilies, memoryFamilies, pressureFamilies, diskFamilies, networkFamilies, processFamilies, specFamilies} {
		for _, f := range group {
			if f.given != nil && !f.given.holds(a) {
				continue
			}
			c.families = append(c.families, f)
			c.descriptors = append(c.descriptors, &runtimeapi.MetricDescriptor{
				Name: f.name, Help: f.help, LabelKeys: append(append([]string(nil), baseKeys...), f.keys...),
			})
		}
	}
	return c
}

// Descriptors describes every metric that Container and Pod can answer. The
// caller must not change them.
func (c *Catalog) Descriptors() []*runtimeapi.MetricDescriptor { return c.descriptors }

// Container answers the metrics of a container.
func (c *Catalog) Container(r *Reading) []*runtimeapi.Metric {
	r.nameDisks()
	return c.collect(r, container)
}

// Pod answers the metrics of a pod as a whole.
func (c *Catalog) Pod(r *Reading) []*runtimeapi.Metric { return c.collect(r, pod) }

func (c *Catalog) collect(r *Reading, of subject) []*runtimeapi.Metric {
	base := r.Labels.values()
	base = slices.Clip(base) // each append to it makes a copy
	metrics := make([]*runtimeapi.Metric, 0, len(c.families)+len(c.families)/2)
	for i := range c.families {
		f := &c.families[i]
		if f.of&of == 0 {
			continue
		}
		kind := runtimeapi.MetricType_COUNTER
		if f.gauge {
			kind = runtimeapi.MetricType_GAUGE
		}
		f.read(r, func(value uint64, labels ...string) {
			metrics = append(metrics, &runtimeapi.Metric{
				Name: f.name, MetricType: kind, LabelValues: append(base, labels...), Value: &runtimeapi.UInt64Value{Value: value},
			})
		})
	}
	return metrics
}

// seconds cuts nanoseconds to whole seconds: CRI has no fractions.
func seconds(nanos uint64) uint64 { return nanos / uint64(time.Second) }
