package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"github.com/berth-runtime/berth/test/harness"
)

// pluginEvent is an event that a plugin got.
type pluginEvent struct {
	kind      string
	pod       *api.PodSandbox
	container *api.Container
}

// plugin is a plugin of the Node Resource Interface that records its events, and answers as a test wants.
type plugin struct {
	// on is called with each event; what it returns is the answer of the plugin.
	on func(context.Context, pluginEvent) error
	// adjust and update answer the events of that name; sync what is there at the beginning.
	adjust   func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate)
	update   func(*api.Container, *api.LinuxResources) []*api.ContainerUpdate
	sync     func(context.Context, []*api.Container) []*api.ContainerUpdate
	validate func(*api.ValidateContainerAdjustmentRequest) error

	stub   stub.Stub
	synced chan struct{}
	once   sync.Once
	gone   chan struct{}

	mu     sync.Mutex
	events []pluginEvent
}

// connect brings up a plugin of the node. It gets every event from then on.
func connect(t *testing.T, n *harness.Node, index string, p *plugin, opts ...stub.Option) *plugin {
	t.Helper()
	if err := p.start(t, n, index, opts...); err != nil {
		t.Fatalf("connect plugin: %v", err)
	}
	select {
	case <-p.synced:
	case <-n.Context().Done():
		t.Fatal("the plugin was not synchronised")
	}
	return p
}

func (p *plugin) start(t *testing.T, n *harness.Node, index string, opts ...stub.Option) (err error) {
	p.synced, p.gone = make(chan struct{}), make(chan struct{})
	opts = append(opts, stub.WithPluginName("test"), stub.WithPluginIdx(index), stub.WithSocketPath(n.NRISocket()),
		stub.WithOnClose(func() { p.once.Do(func() { close(p.gone) }) }))
	if p.stub, err = stub.New(p, opts...); err != nil {
		return err
	}
	t.Cleanup(p.stub.Stop)
	return p.stub.Start(t.Context())
}

func (p *plugin) note(ctx context.Context, kind string, pod *api.PodSandbox, container *api.Container) error {
	ev := pluginEvent{kind, pod, container}
	p.mu.Lock()
	p.events = append(p.events, ev)
	on := p.on
	p.mu.Unlock()
	if on == nil {
		return nil
	}
	return on(ctx, ev)
}

// answer sets plugin.on from now on.
func (p *plugin) answer(on func(context.Context, pluginEvent) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.on = on
}

// kindsOf returns the kinds of events of an object, in order; what it was given at the beginning is the event "Known".
func (p *plugin) kindsOf(id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var kinds []string
	for _, ev := range p.events {
		if ev.container.GetId() == id || ev.container == nil && ev.pod.GetId() == id {
			kinds = append(kinds, ev.kind)
		}
	}
	return strings.Join(kinds, " ")
}

// find returns the events of a kind.
func (p *plugin) find(kind string) []pluginEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.events), func(ev pluginEvent) bool { return ev.kind != kind })
}

// eventually waits until the plugin got these events of an object.
func (p *plugin) eventually(n *harness.Node, id, want string) {
	n.Eventually("the plugin gets the events", func() error {
		if got := p.kindsOf(id); got != want {
			return fmt.Errorf("it got %q, want %q", got, want)
		}
		return nil
	})
}

func (p *plugin) Synchronize(ctx context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	var updates []*api.ContainerUpdate
	for _, pod := range pods {
		if err := p.note(ctx, "Known", pod, nil); err != nil {
			return nil, err
		}
	}
	for _, c := range containers {
		if err := p.note(ctx, "Known", &api.PodSandbox{Id: c.GetPodSandboxId()}, c); err != nil {
			return nil, err
		}
	}
	if p.sync != nil {
		updates = p.sync(ctx, containers)
	}
	close(p.synced)
	return updates, nil
}

func (p *plugin) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.note(ctx, "Run", pod, nil)
}

func (p *plugin) UpdatePodSandbox(ctx context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.note(ctx, "Update", pod, nil)
}

func (p *plugin) PostUpdatePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.note(ctx, "PostUpdate", pod, nil)
}

func (p *plugin) StopPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.note(ctx, "Stop", pod, nil)
}

func (p *plugin) RemovePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.note(ctx, "Remove", pod, nil)
}

func (p *plugin) CreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.note(ctx, "Create", pod, c); err != nil || p.adjust == nil {
		return nil, nil, err
	}
	adjustment, updates := p.adjust(c)
	return adjustment, updates, nil
}

func (p *plugin) PostCreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(ctx, "PostCreate", pod, c)
}

func (p *plugin) StartContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(ctx, "Start", pod, c)
}

func (p *plugin) PostStartContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(ctx, "PostStart", pod, c)
}

func (p *plugin) UpdateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.note(ctx, "Update", pod, c); err != nil || p.update == nil {
		return nil, err
	}
	return p.update(c, r), nil
}

func (p *plugin) PostUpdateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(ctx, "PostUpdate", pod, c)
}

func (p *plugin) StopContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.note(ctx, "Stop", pod, c)
}

func (p *plugin) RemoveContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(ctx, "Remove", pod, c)
}

func (p *plugin) ValidateContainerAdjustment(_ context.Context, req *api.ValidateContainerAdjustmentRequest) error {
	if p.validate == nil {
		return nil
	}
	return p.validate(req)
}

// gate lets a test look around while a plugin handles an event.
type gate struct {
	kind    string
	reached chan pluginEvent
	open    chan struct{}
	once    sync.Once
}

func newGate(kind string) *gate {
	return &gate{kind: kind, reached: make(chan pluginEvent, 1), open: make(chan struct{})}
}

// hold is for plugin.on: the first event of the kind waits until the gate is opened.
func (g *gate) hold(ctx context.Context, ev pluginEvent) error {
	first := false
	if ev.kind == g.kind {
		g.once.Do(func() { first = true })
	}
	if !first {
		return nil
	}
	g.reached <- ev
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await waits for the event.
func (g *gate) await(t *testing.T, n *harness.Node) pluginEvent {
	t.Helper()
	select {
	case ev := <-g.reached:
		return ev
	case <-n.Context().Done():
		t.Fatalf("the plugin did not get %s", g.kind)
	}
	return pluginEvent{}
}

// ofPod is for plugin.on: it hands on what is about a pod.
func ofPod(on func(context.Context, pluginEvent) error) func(context.Context, pluginEvent) error {
	return func(ctx context.Context, ev pluginEvent) error {
		if ev.container != nil {
			return nil
		}
		return on(ctx, ev)
	}
}

// failOnce is for plugin.on: it refuses the first event of the kind.
func failOnce(kind string) func(context.Context, pluginEvent) error {
	var once sync.Once
	return func(_ context.Context, ev pluginEvent) (err error) {
		if ev.kind == kind {
			once.Do(func() { err = errors.New("the plugin does not want it") })
		}
		return err
	}
}
