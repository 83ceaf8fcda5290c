package pod

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/nri"
)

// audience takes the place of the plugins. It records the events that plugins would get
// of each object, with a bar where another daemon began; "Known" is what they
// are given then.
type audience struct {
	mu     sync.Mutex
	events map[string][]string // by object ID
	name   map[string]string   // of an object, by ID
}

func newAudience() *audience {
	return &audience{events: map[string][]string{}, name: map[string]string{}}
}

func (a *audience) note(event, id, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events[id] = append(a.events[id], event)
	a.name[id] = name
}

func (a *audience) ofPod(event string, subject nri.Subject) {
	pod, _ := subject()
	a.note(event, pod.ID, "pod "+pod.Config.GetMetadata().GetName())
}

func (a *audience) ofContainer(event string, subject nri.Subject) {
	_, c := subject()
	a.note(event, c.ID, "container "+c.Config.GetMetadata().GetName())
}

func (a *audience) Start(_ context.Context, rt nri.Runtime) {
	a.mu.Lock()
	for id := range a.events {
		a.events[id] = append(a.events[id], "|")
	}
	a.mu.Unlock()
	pods, containers := rt.Known()
	for _, p := range pods {
		a.note("Known", p.ID, "pod "+p.Config.GetMetadata().GetName())
	}
	for _, c := range containers {
		a.note("Known", c.ID, "container "+c.Config.GetMetadata().GetName())
	}
}

func (a *audience) RunPod(_ context.Context, pod nri.Subject, known func()) error {
	known()
	a.ofPod("Run", pod)
	return nil
}

func (a *audience) UpdatePod(context.Context, nri.Subject, *runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources) error {
	return nil
}

func (a *audience) PodUpdated(context.Context, nri.Subject) {}

func (a *audience) StopPod(_ context.Context, pod nri.Subject) { a.ofPod("Stop", pod) }

func (a *audience) RemovePod(_ context.Context, pod nri.Subject, unknown func()) {
	a.ofPod("Remove", pod)
	unknown()
}

func (a *audience) CreateContainer(_ context.Context, c nri.Subject, known func(), _ func(*api.ContainerAdjustment) error) error {
	known()
	a.ofContainer("Create", c)
	return nil
}

func (a *audience) ContainerCreated(_ context.Context, c nri.Subject) { a.ofContainer("Created", c) }

func (a *audience) StartContainer(_ context.Context, c nri.Subject) error {
	a.ofContainer("Start", c)
	return nil
}

func (a *audience) ContainerStarted(_ context.Context, c nri.Subject) { a.ofContainer("Started", c) }

func (a *audience) UpdateContainer(context.Context, nri.Subject, *runtimeapi.LinuxContainerResources) (*api.LinuxResources, error) {
	return nil, nil
}

func (a *audience) ContainerUpdated(context.Context, nri.Subject) {}

func (a *audience) StopContainer(_ context.Context, c nri.Subject) { a.ofContainer("Stop", c) }

func (a *audience) RemoveContainer(_ context.Context, c nri.Subject, unknown func()) {
	a.ofContainer("Remove", c)
	unknown()
}

// String returns the events of each object.
func (a *audience) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var lines []string
	for id, events := range a.events {
		lines = append(lines, a.name[id]+": "+strings.Join(events, " "))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// The events of one object, within the life of one daemon: each
// event once at most, in order.
var (
	lifeOfPod       = regexp.MustCompile(`^((Run|Known)( Stop)?( Remove)?|Stop( Remove)?|Remove)?$`)
	lifeOfContainer = regexp.MustCompile(`^((Create( Created)?|Known)( Start( Started)?)?( Stop)?( Remove)?|Stop( Remove)?|Remove)?$`)
)

// check asserts that plugins got each event in order and not twice by
// one daemon, and of the end of everything they knew, for nothing is left.
func (a *audience) check(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, events := range a.events {
		legal := lifeOfContainer
		if strings.HasPrefix(a.name[id], "pod ") {
			legal = lifeOfPod
		}
		all := strings.Join(events, " ")
		for life := range strings.SplitSeq(all, "|") {
			if !legal.MatchString(strings.TrimSpace(life)) {
				t.Errorf("events of %s by one daemon: %s, all in all: %s", a.name[id], life, all)
			}
		}
		if !strings.Contains(all, "Remove") {
			t.Errorf("plugins never got the removal of %s: %s", a.name[id], all)
		}
		if started := strings.Contains(all, "Started") || legal == lifeOfPod; started && !strings.Contains(all, "Stop") {
			t.Errorf("plugins never got the stop of %s: %s", a.name[id], all)
		}
	}
}

// TestAudience sees that the check finds what it is for.
func TestAudience(t *testing.T) {
	for _, life := range []string{"Run Run", "Stop Run", "Run Stop Stop", "Remove Stop"} {
		if lifeOfPod.MatchString(life) {
			t.Errorf("a pod may have the life %q", life)
		}
	}
	for _, life := range []string{"Create Start Start", "Start", "Create Stop Start", "Known Created"} {
		if lifeOfContainer.MatchString(life) {
			t.Errorf("a container may have the life %q", life)
		}
	}
}
