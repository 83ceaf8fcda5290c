package cri

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/pod/metric"
)

const (
	// maxReply bounds a reply. Kubelet and crictl accept 16 MiB, and fail the whole call above.
	maxReply = 15 << 20
	// itemOverhead is what a list adds to an item at most: tag and length.
	itemOverhead = 8
	// maxInfo bounds one value of a verbose status in a reply that is too large.
	maxInfo = 64 << 10
	// trimLogInterval is the shortest time between two log lines about one method.
	trimLogInterval = time.Minute
	// kubeletPrefix begins the labels and annotations that kubelet needs to recognise its objects.
	kubeletPrefix = pod.ListedTags
)

// essential are the labels and annotations of kubelet that identify an object.
var essential = map[string]bool{
	"io.kubernetes.pod.name": true, "io.kubernetes.pod.namespace": true, "io.kubernetes.pod.uid": true,
	"io.kubernetes.container.name": true, "io.kubernetes.container.hash": true, "io.kubernetes.container.restartCount": true,
}

// trimLevel is how much is left out of an item. Each level leaves out what the one before does.
type trimLevel int

const (
	trimAnnotations trimLevel = iota + 1 // annotations other than those of kubelet, large verbose values
	trimLabels                           // labels other than those of kubelet, interfaces other than the first
	trimAll                              // what does not identify the object or tell its state
)

// fit trims the items of a reply until it has at most maxReply bytes, and tells how many it trimmed.
// The largest items come first, so that objects of ordinary size stay complete. Items are shared and
// never changed.
func fit[M proto.Message](items []M) (fitting []M, trimmed int) {
	sizes, total := sizesOf(items)
	if total <= maxReply {
		return items, 0
	}
	items = slices.Clone(items)
	order := make([]int, len(items))
	for i := range order {
		order[i] = i
	}
	touched := map[int]bool{}
	for level := trimAnnotations; level <= trimAll && total > maxReply; level++ {
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sizes[b], sizes[a]) })
		for _, i := range order {
			if total <= maxReply {
				break
			}
			items[i] = trim(items[i].ProtoReflect(), level).Interface().(M)
			size := proto.Size(items[i])
			total -= sizes[i] - size
			sizes[i], touched[i] = size, true
		}
	}
	return items, len(touched)
}

func sizesOf[M proto.Message](items []M) (sizes []int, total int) {
	sizes = make([]int, len(items))
	for i, item := range items {
		sizes[i] = proto.Size(item)
		total += sizes[i] + itemOverhead
	}
	return sizes, total
}

// trim returns a copy of a message without what a level leaves out. It shares what it keeps.
func trim(m protoreflect.Message, level trimLevel) protoreflect.Message {
	lighter := m.New()
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case leftOut(field, level):
		case field.IsMap():
			lighter.Set(field, trimMap(lighter.NewField(field), field, value.Map(), level))
		case field.Kind() != protoreflect.MessageKind:
			lighter.Set(field, value)
		case field.IsList():
			list := lighter.NewField(field)
			for i := range value.List().Len() {
				list.List().Append(protoreflect.ValueOfMessage(trim(value.List().Get(i).Message(), level)))
			}
			lighter.Set(field, list)
		default:
			lighter.Set(field, protoreflect.ValueOfMessage(trim(value.Message(), level)))
		}
		return true
	})
	return lighter
}

// leftOut reports whether a level leaves out a whole field.
func leftOut(field protoreflect.FieldDescriptor, level trimLevel) bool {
	switch field.Name() {
	case "interfaces":
		return level >= trimLabels
	case "mounts", "unified", "user_specified_image", "supplemental_groups", "hugepage_limits", "info", "repo_tags", "repo_digests", "additional_ips":
		return level >= trimAll
	default:
		return false
	}
}

func trimMap(lighter protoreflect.Value, field protoreflect.FieldDescriptor, entries protoreflect.Map, level trimLevel) protoreflect.Value {
	entries.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		switch name := field.Name(); {
		case name == "info" && len(value.String()) > maxInfo:
			value = protoreflect.ValueOfString(fmt.Sprintf(`{"omitted":"%d bytes, more than a reply can carry"}`, len(value.String())))
		case (name == "annotations" || name == "labels" && level >= trimLabels) && !ofKubelet(key.String(), value.String(), level):
			return true
		}
		lighter.Map().Set(key, value)
		return true
	})
	return lighter
}

// ofKubelet reports whether kubelet needs a label or annotation.
func ofKubelet(key, value string, level trimLevel) bool {
	if level < trimAll {
		return strings.HasPrefix(key, kubeletPrefix)
	}
	return essential[key] && len(value) <= pod.MaxListedTag
}

// fitMetrics leaves out whole families of metrics until a reply has at most maxReply bytes, and
// returns their names.
func fitMetrics(pods []*runtimeapi.PodSandboxMetrics) (fitting []*runtimeapi.PodSandboxMetrics, left []string) {
	_, total := sizesOf(pods)
	if total <= maxReply {
		return pods, nil
	}
	families := map[string]int{}
	for _, p := range pods {
		addSizes(families, p.GetMetrics())
		for _, c := range p.GetContainerMetrics() {
			addSizes(families, c.GetMetrics())
		}
	}
	drop := map[string]bool{}
	for _, name := range metric.LeastImportant(families) {
		if total <= maxReply {
			break
		}
		drop[name] = true
		total -= families[name]
		left = append(left, name)
	}
	fitting = make([]*runtimeapi.PodSandboxMetrics, len(pods))
	for i, p := range pods {
		lighter := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.GetPodSandboxId(), Metrics: withoutFamilies(p.GetMetrics(), drop)}
		for _, c := range p.GetContainerMetrics() {
			lighter.ContainerMetrics = append(lighter.ContainerMetrics, &runtimeapi.ContainerMetrics{
				ContainerId: c.GetContainerId(), Metrics: withoutFamilies(c.GetMetrics(), drop),
			})
		}
		fitting[i] = lighter
	}
	return fitting, left
}

// addSizes adds what each family takes of a reply.
func addSizes(families map[string]int, metrics []*runtimeapi.Metric) {
	for _, m := range metrics {
		families[m.GetName()] += proto.Size(m)
	}
}

func withoutFamilies(metrics []*runtimeapi.Metric, drop map[string]bool) []*runtimeapi.Metric {
	return slices.DeleteFunc(slices.Clone(metrics), func(m *runtimeapi.Metric) bool { return drop[m.GetName()] })
}

// fitList is fit for the reply of a method that lists, and logs what it did.
func fitList[M proto.Message](ctx context.Context, s *Server, method string, items []M) []M {
	fitting, trimmed := fit(items)
	if trimmed > 0 {
		s.logTrimmed(ctx, method, "items", len(items), "trimmed", trimmed)
	}
	return fitting
}

// fitReply is fitList for a reply that is not a list.
func fitReply[M proto.Message](ctx context.Context, s *Server, method string, reply M) M {
	return fitList(ctx, s, method, []M{reply})[0]
}

// fitMetricsList is fitMetrics, and logs what it did.
func (s *Server) fitMetricsList(ctx context.Context, method string, pods []*runtimeapi.PodSandboxMetrics) []*runtimeapi.PodSandboxMetrics {
	fitting, left := fitMetrics(pods)
	if len(left) > 0 {
		s.logTrimmed(ctx, method, "pods", len(pods), "omitted", left)
	}
	return fitting
}

// logTrimmed records that a reply was too large for its clients, at most once in a while for each
// method.
func (s *Server) logTrimmed(ctx context.Context, method string, attributes ...any) {
	now := time.Now()
	s.trimMu.Lock()
	recent := now.Sub(s.trimLogged[method]) < trimLogInterval
	if !recent {
		s.trimLogged[method] = now
	}
	s.trimMu.Unlock()
	if recent {
		return
	}
	s.Log.WarnContext(ctx, "reply trimmed: it was larger than clients accept",
		append([]any{"method", method, "limit", maxReply}, attributes...)...)
}
