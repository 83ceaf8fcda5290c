package cri

import (
	"fmt"
	"maps"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/pod/metric"
	"github.com/berth-runtime/berth/internal/stats"
	"github.com/berth-runtime/berth/test/leakcheck"
)

const (
	// kubeletLimit is the largest message that kubelet and crictl accept.
	kubeletLimit = 16 << 20
	// manyPods is more than kubelet supports on a node.
	manyPods = 2500
	// maxAnnotations is what Kubernetes allows an object to carry.
	maxAnnotations = 256 << 10
)

// asKubelet makes a call as kubelet does: a larger reply fails.
var asKubelet = grpc.MaxCallRecvMsgSize(kubeletLimit)

// identity are the labels by which kubelet recognises a container.
var identity = map[string]string{
	"io.kubernetes.pod.name": strings.Repeat("p", 253), "io.kubernetes.pod.namespace": strings.Repeat("n", 63),
	"io.kubernetes.pod.uid": strings.Repeat("u", 36), "io.kubernetes.container.name": strings.Repeat("c", 63),
}

// heavyLabels are kubelet's labels among as many as Kubernetes allows.
func heavyLabels() map[string]string {
	labels := maps.Clone(identity)
	for i := range 80 {
		labels[fmt.Sprintf("example.com/%063d", i)] = strings.Repeat("v", 63)
	}
	return labels
}

func heavyAnnotations() map[string]string {
	return map[string]string{
		"io.kubernetes.container.hash": "a1b2c3", "io.kubernetes.container.ports": strings.Repeat("p", 8<<10),
		"example.com/configuration": strings.Repeat("x", maxAnnotations),
	}
}

// heavyNode fills an edge with what a node can hold at worst.
func heavyNode(e *edge) {
	labels, annotations := heavyLabels(), heavyAnnotations()
	var mounts []*runtimeapi.Mount
	for i := range 50 {
		mounts = append(mounts, &runtimeapi.Mount{ContainerPath: fmt.Sprintf("/%0255d", i), HostPath: fmt.Sprintf("/%0255d", i)})
	}
	for i := range manyPods {
		id := fmt.Sprintf("%064d", i)
		meta := &runtimeapi.PodSandboxMetadata{Name: strings.Repeat("p", 253), Namespace: strings.Repeat("n", 63), Uid: id[28:]}
		e.engine.sandboxes = append(e.engine.sandboxes, &pod.Sandbox{ID: id, CreatedAt: time.Now(), Config: &runtimeapi.PodSandboxConfig{
			Metadata: meta, Labels: labels, Annotations: annotations,
		}})
		e.engine.containers = append(e.engine.containers, &pod.Container{
			ID: id, SandboxID: id, ImageID: "sha256:" + id, ImageRef: strings.Repeat("r", 512), CreatedAt: time.Now(), State: runtimeapi.ContainerState_CONTAINER_RUNNING,
			Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: strings.Repeat("c", 63)}, Labels: labels, Annotations: annotations, Mounts: mounts,
				Image: &runtimeapi.ImageSpec{Image: "sha256:" + id, UserSpecifiedImage: strings.Repeat("i", 512), Annotations: annotations},
			},
		})
		figures := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: id, Labels: labels, Annotations: annotations}}
		e.engine.figures = append(e.engine.figures, figures)
		e.engine.stats = append(e.engine.stats, &runtimeapi.PodSandboxStats{
			Attributes: &runtimeapi.PodSandboxAttributes{Id: id, Metadata: meta, Labels: labels, Annotations: annotations},
			Linux:      &runtimeapi.LinuxPodSandboxStats{Network: heavyNetwork(), Containers: []*runtimeapi.ContainerStats{figures}},
		})
		e.images.images = append(e.images.images, &image.Image{
			ID: "sha256:" + id, Tags: []string{"example.com/" + id}, Digests: []string{strings.Repeat("d", 512)}, Size: 1, Annotations: annotations,
		})
	}
	e.engine.metrics = heavyMetrics()
}

func heavyNetwork() *runtimeapi.NetworkUsage {
	usage := &runtimeapi.NetworkUsage{}
	for i := range 16 {
		usage.Interfaces = append(usage.Interfaces, &runtimeapi.NetworkInterfaceUsage{Name: fmt.Sprintf("interface%d", i), RxBytes: &runtimeapi.UInt64Value{Value: 1 << 60}})
	}
	return usage
}

// heavyMetrics are those of many pods on a host that accounts everything.
func heavyMetrics() []*runtimeapi.PodSandboxMetrics {
	catalog := metric.New(stats.Abilities{
		CPU: true, Memory: true, IO: true, PIDs: true, MemoryPeak: true, Swap: true, Hugetlb: true, HugetlbPeak: true, Pressure: true,
	})
	var list []*runtimeapi.PodSandboxMetrics
	for i := range manyPods {
		id := fmt.Sprintf("%064d", i)
		reading := &metric.Reading{
			Labels: metric.Labels{ID: "/kubepods/burstable/pod" + id + "/" + id, Name: id, Image: strings.Repeat("i", 512), Pod: strings.Repeat("p", 253)},
			Now:    time.Now(), Started: time.Now(), Usage: &stats.Container{IO: make([]stats.IODevice, 8)},
			Filesystem: &stats.Filesystem{Device: "/dev/vda1"}, Limits: &stats.MemoryLimits{}, Processes: &stats.Processes{},
		}
		list = append(list, &runtimeapi.PodSandboxMetrics{
			PodSandboxId: id, Metrics: catalog.Pod(reading),
			ContainerMetrics: []*runtimeapi.ContainerMetrics{{ContainerId: id, Metrics: catalog.Container(reading)}},
		})
	}
	return list
}

// TestRepliesFitKubelet computes every reply with the worst contents. Each arrives with every item,
// which still has what kubelet needs.
func TestRepliesFitKubelet(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	heavyNode(e)
	ctx := t.Context()
	lists := map[string]func() (items int, err error){
		"ListPodSandbox": func() (int, error) {
			r, err := e.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}, asKubelet)
			for _, s := range r.GetItems() {
				checkIdentity(t, s.Id, s.Labels)
			}
			return len(r.GetItems()), err
		},
		"ListContainers": func() (int, error) {
			r, err := e.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{}, asKubelet)
			for _, c := range r.GetContainers() {
				checkIdentity(t, c.Id, c.Labels)
				if c.Annotations["io.kubernetes.container.hash"] == "" || c.ImageId == "" || c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
					t.Errorf("container %s lacks hash, image or state", c.Id)
				}
			}
			return len(r.GetContainers()), err
		},
		"ListImages": func() (int, error) {
			r, err := e.image.ListImages(ctx, &runtimeapi.ListImagesRequest{}, asKubelet)
			return len(r.GetImages()), err
		},
		"ListContainerStats": func() (int, error) {
			r, err := e.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{}, asKubelet)
			for _, s := range r.GetStats() {
				checkIdentity(t, s.Attributes.Id, s.Attributes.Labels)
			}
			return len(r.GetStats()), err
		},
		"ListPodSandboxStats": func() (int, error) {
			r, err := e.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{}, asKubelet)
			for _, s := range r.GetStats() {
				checkIdentity(t, s.Linux.Containers[0].Attributes.Id, s.Linux.Containers[0].Attributes.Labels)
			}
			return len(r.GetStats()), err
		},
		"ListPodSandboxMetrics": func() (int, error) {
			r, err := e.runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{}, asKubelet)
			for _, p := range r.GetPodMetrics() {
				if name := p.ContainerMetrics[0].Metrics[0].Name; !strings.Contains(name, "cpu") {
					t.Errorf("pod %s has %s first", p.PodSandboxId, name)
				}
			}
			return len(r.GetPodMetrics()), err
		},
	}
	for method, call := range lists {
		if items, err := call(); err != nil || items != manyPods {
			t.Errorf("%s: %d items of %d, error %v", method, items, manyPods, err)
		}
		if !strings.Contains(e.log.String(), "method="+method) {
			t.Errorf("%s: no log line says that the reply was trimmed", method)
		}
	}
}

func checkIdentity(t *testing.T, id string, labels map[string]string) {
	t.Helper()
	for key, value := range identity {
		if labels[key] != value {
			t.Fatalf("%s: label %s is %q, want %q", id, key, labels[key], value)
		}
	}
}

// TestStatusFitsKubelet: the status of one object with contents of any size arrives, in events and
// streams too.
func TestStatusFitsKubelet(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	sandbox, huge := webPod(), nginx()
	huge.Config.Labels = identity
	huge.Config.Annotations = map[string]string{"example.com/huge": strings.Repeat("x", kubeletLimit)}
	sandbox.Config.Annotations = huge.Config.Annotations
	e.engine.sandboxes, e.engine.containers = []*pod.Sandbox{sandbox}, []*pod.Container{huge}
	e.images.images = []*image.Image{{ID: "sha256:aa", Annotations: huge.Config.Annotations}}
	e.images.images[0].Config.Labels = huge.Config.Annotations
	ctx := t.Context()
	for name, call := range map[string]func() (proto.Message, error){
		"ContainerStatus": func() (proto.Message, error) {
			return e.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: huge.ID, Verbose: true}, asKubelet)
		},
		"PodSandboxStatus": func() (proto.Message, error) {
			return e.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox.ID, Verbose: true}, asKubelet)
		},
		"ImageStatus": func() (proto.Message, error) {
			return e.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "sha256:aa"}, Verbose: true}, asKubelet)
		},
		"StreamContainers": func() (proto.Message, error) {
			s, err := e.runtime.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{}, asKubelet)
			if err != nil {
				return nil, err
			}
			got := receive(t, s.Recv)
			return got[0], nil
		},
		"GetContainerEvents": func() (proto.Message, error) {
			s, err := e.runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{}, asKubelet)
			if err != nil {
				return nil, err
			}
			e.engine.events <- pod.Event{ContainerID: huge.ID, Sandbox: sandbox, Containers: []*pod.Container{huge}}
			return s.Recv()
		},
	} {
		reply, err := call()
		if err != nil || proto.Size(reply) == 0 {
			t.Errorf("%s: reply of %d bytes, error %v", name, proto.Size(reply), err)
		}
	}
}

// TestOrdinaryObjectsStayComplete: only the objects that are too large lose something.
func TestOrdinaryObjectsStayComplete(t *testing.T) {
	var items []*runtimeapi.Image
	for i := range 1000 {
		item := &runtimeapi.Image{Id: fmt.Sprint(i), Spec: &runtimeapi.ImageSpec{Annotations: map[string]string{"a": "small"}}}
		if i%200 == 0 {
			item.Spec.Annotations["a"] = strings.Repeat("x", 4<<20)
		}
		items = append(items, item)
	}
	fitting, trimmed := fit(items)
	small := 0
	for i, item := range fitting {
		if item.Spec.Annotations["a"] == "small" {
			small++
		}
		if len(items[i].Spec.Annotations) != 1 || item.Id != fmt.Sprint(i) {
			t.Fatalf("item %d changed its place or the original", i)
		}
	}
	if trimmed != 2 || small != 995 {
		t.Errorf("%d items trimmed, %d of 995 small ones complete; want 2 of the 5 large ones trimmed", trimmed, small)
	}
}

// TestInvalidTextSpoilsNoReply: what is not UTF-8 in one object is escaped, and the reply about all
// arrives.
func TestInvalidTextSpoilsNoReply(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	bad := &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: "bad", Annotations: map[string]string{"k\xfe": "v\xfd"}},
		Linux:      &runtimeapi.LinuxPodSandboxStats{Network: &runtimeapi.NetworkUsage{Interfaces: []*runtimeapi.NetworkInterfaceUsage{{Name: "eth\xff"}}}},
	}
	e.engine.stats = []*runtimeapi.PodSandboxStats{bad, {Attributes: &runtimeapi.PodSandboxAttributes{Id: "good"}}}
	e.engine.metrics = []*runtimeapi.PodSandboxMetrics{{PodSandboxId: "bad", Metrics: []*runtimeapi.Metric{{Name: "m", LabelValues: []string{"eth\xff"}}}}}
	list, err := e.runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(list.Stats) != 2 {
		t.Fatalf("list %v, error %v", list, err)
	}
	got := list.Stats[0]
	if name := got.Linux.Network.Interfaces[0].Name; name != `eth\xff` || got.Attributes.Annotations[`k\xfe`] != `v\xfd` {
		t.Errorf("interface %q, annotations %q", name, got.Attributes.Annotations)
	}
	if bad.Linux.Network.Interfaces[0].Name != "eth\xff" {
		t.Error("the engine's own object was changed")
	}
	metrics, err := e.runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || metrics.PodMetrics[0].Metrics[0].LabelValues[0] != `eth\xff` {
		t.Errorf("metrics %v, error %v", metrics, err)
	}
}

// fill sets every field of a message to its largest value, with texts of 255 bytes.
func fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		switch f := fields.Get(i); {
		case f.IsMap() || f.IsList():
		case f.Message() != nil && strings.HasPrefix(string(f.Message().Name()), "Windows"):
		case f.Message() != nil:
			fill(m.Mutable(f).Message())
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString(strings.Repeat("s", 255)))
		case f.Kind() == protoreflect.Uint64Kind:
			m.Set(f, protoreflect.ValueOfUint64(math.MaxUint64))
		case f.Kind() == protoreflect.Int64Kind:
			m.Set(f, protoreflect.ValueOfInt64(math.MaxInt64))
		case f.Kind() == protoreflect.Uint32Kind:
			m.Set(f, protoreflect.ValueOfUint32(math.MaxUint32))
		}
	}
}

// TestListedSizeIsEnough: what identifies an object takes no more of a list than the account of pods and containers says, so that
// no number of them makes a reply too large.
func TestListedSizeIsEnough(t *testing.T) {
	tags := map[string]string{"io.kubernetes.other": strings.Repeat("o", 100), "example.com/x": strings.Repeat("x", 9999)}
	for key := range essential {
		tags[key] = strings.Repeat("v", pod.MaxListedTag)
	}
	attributes := &runtimeapi.ContainerAttributes{Labels: tags, Annotations: tags}
	container := &runtimeapi.Container{Labels: tags, Annotations: tags, Image: &runtimeapi.ImageSpec{Annotations: tags}}
	usage := &runtimeapi.ContainerStats{Attributes: attributes}
	sandbox := &runtimeapi.PodSandbox{Labels: tags, Annotations: tags}
	podUsage := &runtimeapi.PodSandboxStats{Attributes: &runtimeapi.PodSandboxAttributes{Labels: tags, Annotations: tags}}
	name := strings.Repeat("s", 255)
	for _, c := range []struct {
		m    proto.Message
		size int
	}{
		{container, pod.ListedSize([]string{name, name, name, name, name}, tags, tags, tags)},
		{usage, pod.ListedSize([]string{name, name, name, name, name}, tags, tags, tags)},
		{sandbox, pod.ListedSize([]string{name, name, name, name}, tags, tags)},
		{podUsage, pod.ListedSize([]string{name, name, name, name}, tags, tags)},
	} {
		fill(c.m.ProtoReflect())
		if size := proto.Size(trim(c.m.ProtoReflect(), trimAll).Interface()) + itemOverhead; size > c.size {
			t.Errorf("%s takes %d bytes of a list, %d are accounted", c.m.ProtoReflect().Descriptor().Name(), size, c.size)
		}
	}
}
