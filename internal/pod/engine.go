package pod

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/internal/network"
	"github.com/berth-runtime/berth/internal/nri"
	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
	"github.com/berth-runtime/berth/internal/pod/metric"
	"github.com/berth-runtime/berth/internal/pod/store"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/spec"
	"github.com/berth-runtime/berth/internal/stats"
)

// Images is what the engine needs of the image store.
type Images interface {
	// Resolve finds an image in memory; ErrNotFound if it is not here.
	Resolve(ref string) (*image.Image, error)
	// PrepareRootfs makes a writable layer; again for the same key is no error.
	PrepareRootfs(ctx context.Context, key, imageID string) error
	MountRootfs(ctx context.Context, key, target string, readonly bool, m *image.Mapping) error
	// LabelRootfs notes with which SELinux label the layer is mounted next.
	LabelRootfs(key, label string) error
	// UnmountRootfs and RemoveRootfs succeed if there is nothing to do.
	UnmountRootfs(ctx context.Context, target string) error
	RemoveRootfs(ctx context.Context, key string) error
	RootfsKeys(ctx context.Context) ([]string, error)
	// ExportRootfs writes what a container changed, and what is in the volumes of its image, as an archive, and returns
	// what it removed; ImportRootfs makes the same changes in what is mounted at target.
	ExportRootfs(ctx context.Context, key string, volumes map[int]string, w io.Writer) (removed []string, err error)
	ImportRootfs(ctx context.Context, target string, changes io.Reader, removed []string) error
	RootfsUsage(ctx context.Context, key string) (bytes, inodes uint64, err error)
	// PrepareVolumeDirs makes the directories of volumes that the image declares; again for the same key is no error.
	PrepareVolumeDirs(ctx context.Context, key, root string, volumes []string, m *image.Mapping) (dirs []string, err error)
	// PrepareVolume keeps an image for mounting; again for the same key is no
	// error. UnmountRootfs undoes MountVolume.
	PrepareVolume(ctx context.Context, key, imageID string) error
	MountVolume(ctx context.Context, key, target string, m *image.Mapping, label string) error
	// RemoveVolume succeeds if there is nothing to do.
	RemoveVolume(ctx context.Context, key string) error
	VolumeKeys(ctx context.Context) ([]string, error)
}

// Network is what the engine needs of the network manager.
type Network interface {
	// Plan decides; the plan is recorded before Attach.
	Plan(pod network.Pod) (network.Plan, error)
	Attach(ctx context.Context, pod network.Pod, plan network.Plan) (network.Result, error)
	// Detach may be repeated, and works when the namespace is gone.
	Detach(ctx context.Context, pod network.Pod, plan network.Plan) error
	Ready() error
	Collect(ctx context.Context, live map[string]bool) error
}

// Supervisor is what the engine needs of berth-shim's client.
type Supervisor interface {
	Start(ctx context.Context, req shim.StartRequest) (shim.Started, error)
	StartInfra(ctx context.Context, req shim.InfraRequest) (pid int, err error)
	Kill(ctx context.Context, id string, sig syscall.Signal) error
	KillAll(ctx context.Context, id string) error
	// Delete succeeds for an ID that is not known.
	Delete(ctx context.Context, id string) error
	List(ctx context.Context) ([]shim.Container, error)
	// Exits delivers every exit at least once.
	Exits() <-chan shim.Exit
	Update(ctx context.Context, id string, r *specs.LinuxResources) error
	ReopenLog(ctx context.Context, id string) error
	// Checkpoint writes the processes down and leaves them as they were.
	Checkpoint(ctx context.Context, req shim.CheckpointRequest) error
	Exec(ctx context.Context, req shim.ExecRequest) (*shim.Exec, error)
	Attach(ctx context.Context, id string, stdin bool) (*shim.Attachment, error)
}

// Plugins is what the engine needs of the manager of NRI plugins. Methods that
// return no error tell of something that cannot be helped any more.
type Plugins interface {
	// Start lets plugins take part, which first get the objects of rt.
	Start(ctx context.Context, rt nri.Runtime)
	// RunPod and CreateContainer call known before any plugin gets the event; the
	// methods for what is removed call unknown after all are.
	RunPod(ctx context.Context, pod nri.Subject, known func()) error
	UpdatePod(ctx context.Context, pod nri.Subject, overhead, resources *runtimeapi.LinuxContainerResources) error
	PodUpdated(ctx context.Context, pod nri.Subject)
	StopPod(ctx context.Context, pod nri.Subject)
	RemovePod(ctx context.Context, pod nri.Subject, unknown func())
	// CreateContainer gives to adjust what plugins want to be different.
	CreateContainer(ctx context.Context, container nri.Subject, known func(), adjust func(*api.ContainerAdjustment) error) error
	ContainerCreated(ctx context.Context, container nri.Subject)
	StartContainer(ctx context.Context, container nri.Subject) error
	ContainerStarted(ctx context.Context, container nri.Subject)
	// UpdateContainer returns what plugins make of what is asked for.
	UpdateContainer(ctx context.Context, container nri.Subject, asked *runtimeapi.LinuxContainerResources) (*api.LinuxResources, error)
	ContainerUpdated(ctx context.Context, container nri.Subject)
	StopContainer(ctx context.Context, container nri.Subject)
	RemoveContainer(ctx context.Context, container nri.Subject, unknown func())
}

// Handlers is the part of the runtime handlers that the engine uses.
type Handlers interface {
	// Get returns a handler that works, and waits while it is being tried; "" is the default.
	Get(ctx context.Context, name string) (handlers.Info, error)
	// All and Default wait for nothing.
	All() map[string]handlers.Info
	Default() string
}

// Options are the parts that the engine is made of.
type Options struct {
	// Root and State are the directories of the daemon.
	Root, State string
	// NetNSDir is where network namespaces are pinned for plugins and tools; none if empty.
	NetNSDir string
	// Instance tells daemons on one host apart: "" or a short hash of Root.
	Instance string

	Images  Images
	Network Network
	Shim    Supervisor
	// Plugins may be nil: there are no plugins then.
	Plugins Plugins

	Cgroups      *cgroup.Host
	CgroupDriver cgroup.Driver
	// Host is what this host can give to containers.
	Host spec.Host

	// InjectCDI adds devices of the Container Device Interface to a spec; nil if
	// there are none.
	InjectCDI func(s *specs.Spec, names []string) error

	Handlers Handlers

	// LogLimit is how many bytes of log a container may write per second; 0 is no limit.
	LogLimit int64
	// ImageVolumes says what becomes of the volumes that images declare: "bind", "mkdir", or ignored.
	ImageVolumes string
	// Defaults are what requests leave open; nil means those of the zero value, and 64 MiB of shared memory.
	Defaults *spec.Defaults
	// HostPaths says which missing sources of mounts are created.
	HostPaths HostPaths

	// Warned counts an unsupported request by field; nil counts nothing.
	Warned func(field string)

	// NetworkDeadline bounds attaching and detaching one pod, RuntimeDeadline
	// one call of the OCI runtime; zero means two minutes.
	NetworkDeadline, RuntimeDeadline time.Duration

	Log *slog.Logger

	// fault lets tests fail or hold an effect, named like "do network".
	fault func(effect string) error
}

// Engine owns the sandboxes and containers of one root directory.
type Engine struct {
	opts    Options
	store   store.Store
	drivers drivers
	stop    context.CancelFunc
	events  hub
	layers  layers
	// catalog is what metrics this host gives, found out when first asked.
	catalog func() *metric.Catalog

	// supervised is what the supervisor knew when the engine was opened.
	supervised map[string]shim.Container

	// mu guards the indexes and sandbox.containers.
	mu         sync.RWMutex
	sandboxes  index[*sandbox]
	containers index[*container]
	names      map[string]any // *sandbox or *container by what may exist once
}

// closeGrace is how long Close waits for what is in flight to end by itself.
const closeGrace = 10 * time.Second

// Open reads what earlier engines wrote down, takes up what they left, and
// returns as soon as every object is listed again. Undoing what is not wanted
// any more goes on in the background.
func Open(ctx context.Context, opts Options) (*Engine, error) {
	if opts.NetworkDeadline == 0 {
		opts.NetworkDeadline = stepDeadline
	}
	if opts.Plugins == nil {
		opts.Plugins = (*nri.Manager)(nil)
	}
	if opts.Defaults == nil {
		opts.Defaults = &spec.Defaults{ShmBytes: shmBytes}
	}
	base, stop := context.WithCancel(context.WithoutCancel(ctx))
	e := &Engine{
		opts: opts, stop: stop, store: store.New(opts.Root),
		drivers:   drivers{ctx: base, fault: opts.fault},
		sandboxes: newIndex[*sandbox](), containers: newIndex[*container](), names: map[string]any{},
	}
	e.events.log = opts.Log
	e.catalog = sync.OnceValue(func() *metric.Catalog { return metric.New(stats.Detect(opts.Cgroups)) })
	err := e.openDirs()
	if err == nil {
		err = e.recover(ctx)
	}
	if err != nil {
		e.shutdown(ctx)
		return nil, err
	}
	e.drivers.start(e.watchExits)
	return e, nil
}

// Close ends the engine, not its containers. What is in flight gets a grace to
// end; what does not is taken up by the next engine.
func (e *Engine) Close(ctx context.Context) error {
	e.shutdown(ctx)
	e.mu.RLock()
	empty := len(e.names) == 0
	e.mu.RUnlock()
	if empty {
		return e.removeBase(ctx)
	}
	return nil
}

func (e *Engine) shutdown(ctx context.Context) {
	e.drivers.mu.Lock()
	e.drivers.closed = true
	e.drivers.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, closeGrace)
	defer cancel()
	e.waitIdle(ctx)
	e.stop()
	for _, o := range e.objects() {
		o.stopRetry()
	}
	e.drivers.wg.Wait()
	e.events.close()
}

// waitIdle waits until nothing is in flight, or ctx ends.
func (e *Engine) waitIdle(ctx context.Context) {
	for _, o := range e.objects() {
		idle := o.idle()
		select {
		case <-idle:
		case <-ctx.Done():
			return
		}
	}
}

// objects are all sandboxes and containers, whatever their state.
func (e *Engine) objects() []*object {
	e.mu.RLock()
	defer e.mu.RUnlock()
	all := make([]*object, 0, len(e.sandboxes.byID)+len(e.containers.byID))
	for _, s := range e.sandboxes.byID {
		all = append(all, &s.object)
	}
	for _, c := range e.containers.byID {
		all = append(all, &c.object)
	}
	return all
}

// Sandbox returns the view of a sandbox by ID or unambiguous prefix.
func (e *Engine) Sandbox(id string) (*Sandbox, error) {
	s, err := e.findSandbox(id)
	if err != nil {
		return nil, err
	}
	if v := s.view.Load(); v != nil {
		return v, nil
	}
	return nil, notFound("sandbox", id)
}

// Container returns the view of a container by ID or unambiguous prefix.
func (e *Engine) Container(id string) (*Container, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return nil, err
	}
	if v := c.view.Load(); v != nil {
		return v, nil
	}
	return nil, notFound("container", id)
}

// Sandboxes returns the sandboxes that match, the newest first.
func (e *Engine) Sandboxes(f Filter) []*Sandbox {
	e.mu.RLock()
	candidates := e.sandboxes.all(f.Labels)
	e.mu.RUnlock()
	var found []*Sandbox
	for _, s := range candidates {
		v := s.view.Load()
		if v == nil || !strings.HasPrefix(v.ID, f.ID) || f.SandboxState != nil && v.State != *f.SandboxState ||
			!matchLabels(v.Config.GetLabels(), f.Labels) {
			continue
		}
		found = append(found, v)
	}
	slices.SortFunc(found, func(a, b *Sandbox) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return found
}

// Containers returns the containers that match, the newest first.
func (e *Engine) Containers(f Filter) []*Container {
	e.mu.RLock()
	candidates := e.containers.all(f.Labels)
	e.mu.RUnlock()
	var found []*Container
	for _, c := range candidates {
		v := c.view.Load()
		if v == nil || !strings.HasPrefix(v.ID, f.ID) || !strings.HasPrefix(v.SandboxID, f.SandboxID) ||
			f.ContainerState != nil && v.State != *f.ContainerState || !matchLabels(v.Config.GetLabels(), f.Labels) {
			continue
		}
		found = append(found, v)
	}
	slices.SortFunc(found, func(a, b *Container) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return found
}

// Handlers returns the runtime handlers by name.
func (e *Engine) Handlers() map[string]handlers.Info { return e.opts.Handlers.All() }

// DefaultHandler is the name of the handler that "" stands for.
func (e *Engine) DefaultHandler() string { return e.opts.Handlers.Default() }

// NetworkReady is nil, or says why pods cannot get a network now.
func (e *Engine) NetworkReady() error { return e.opts.Network.Ready() }

func notFound(what, id string) error {
	return fmt.Errorf("%s %q: %w", what, id, errdefs.ErrNotFound)
}
