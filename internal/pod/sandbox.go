package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod/machine"
	"github.com/berth-runtime/berth/internal/pod/store"
	"github.com/berth-runtime/berth/internal/spec"
	"github.com/berth-runtime/berth/internal/text"
	"github.com/berth-runtime/berth/internal/warning"
)

// sandbox is one pod sandbox. What has no comment is guarded by object.mu.
type sandbox struct {
	object
	engine *Engine
	rec    sandboxRecord
	// hasContainer tells whether a container stands for the pod: it has the sandbox's
	// ID, and the runtime runs the others in the sandbox (a virtual machine, gVisor's
	// kernel) that it has made for it. Only the supervisor and the runtime know it. It never changes.
	hasContainer bool
	// stopping is set when a stop begins: no container may join any more.
	stopping bool
	// claimed tells that a caller has received the sandbox's ID.
	claimed bool
	// known tells that plugins know of the sandbox.
	known bool
	// containers is guarded by Engine.mu.
	containers map[string]*container
	// volumes are the images that its containers mount.
	volumes claims
	// view is what readers get; nil while the sandbox is not to be seen.
	view atomic.Pointer[Sandbox]
	// last is the last view there was, for the events of a sandbox that is gone.
	last atomic.Pointer[Sandbox]
	// saving is held while the record is written: an update of resources saves
	// beside the driver. It guards forgotten: there shall be no record any more.
	saving    sync.Mutex
	forgotten bool
	// logged are the warnings of it and its containers that the log has, guarded by logging.
	logged  warning.List
	logging sync.Mutex
	// published are the events that were published.
	published published
	// cpu is what readings of its figures remember.
	cpu rate
}

func (s *sandbox) objectID() string { return s.rec.ID }

func (s *sandbox) objectLabels() map[string]string { return s.rec.Config.M.GetLabels() }

// String names the pod in errors. Kubelet counts errors with the same text, and each attempt has another ID: the log has that.
func (s *sandbox) String() string {
	m := s.rec.Config.M.GetMetadata()
	return fmt.Sprintf("pod %s/%s (uid %s)", m.GetNamespace(), m.GetName(), m.GetUid())
}

// sandboxName is what may exist once: kubelet counts attempts up for each new
// sandbox of a pod.
func sandboxName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("sandbox %s/%s/%s/%d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

// RunSandbox makes a sandbox and returns its ID once it is ready. A nil error
// means that its namespaces exist and its network is up. After an error
// nothing of it is listed, and the same request may be made again. While a
// request is in flight, the same request joins it.
func (e *Engine) RunSandbox(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	cfg, ignored := spec.CanonicalSandbox(cfg)
	if err := spec.ValidateSandbox(cfg); err != nil {
		return "", fmt.Errorf("run sandbox: %w", err)
	}
	h, err := e.opts.Handlers.Get(ctx, handler)
	if err == nil {
		err = spec.CheckSandbox(cfg, e.hostFor(h))
	}
	if err != nil {
		return "", fmt.Errorf("run sandbox: %w", err)
	}
	for {
		s, created, err := e.reserveSandbox(cfg, handler, h.SandboxContainer)
		if err != nil {
			return "", fmt.Errorf("run sandbox: %w", err)
		}
		if created {
			s.mu.Lock()
			s.rec.Warnings.Append(ignored...)
			s.mu.Unlock()
			s.noteWarnings(s.rec.Warnings)
		} else {
			again, err := s.mayJoin(ctx, cfg, handler)
			if err != nil {
				return "", fmt.Errorf("run sandbox: %w", err)
			}
			if again {
				continue
			}
		}
		if err := s.await(ctx, s.requestReady()); err != nil {
			return "", fmt.Errorf("run sandbox: %w", err)
		}
		s.mu.Lock()
		s.claimed = true
		s.mu.Unlock()
		return s.rec.ID, nil
	}
}

// requestReady asks for the sandbox, unless it is being stopped.
func (s *sandbox) requestReady() <-chan error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		refused := make(chan error, 1)
		refused <- errStopped
		return refused
	}
	return s.requestLocked(machine.Event{Kind: machine.Raise, Level: sandboxReady})
}

// mayJoin decides what a second request with a name in use gets: the sandbox
// that its own earlier call is making or has made without anybody learning its
// ID, a wait until a failed one is gone (again is true then), or a refusal.
func (s *sandbox) mayJoin(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (again bool, err error) {
	same := proto.Equal(s.rec.Config.M, cfg) && s.rec.Handler == handler
	s.mu.Lock()
	rising, listed, claimed := s.state.Rising(), s.rec.Listed, s.claimed
	s.mu.Unlock()
	switch {
	case same && rising, same && listed && !claimed && !s.isStopping():
		s.log.Info("request joins the one in flight")
		return false, nil
	case !rising && !listed:
		return true, s.await(ctx, s.request(machine.Event{Kind: machine.Lower}))
	}
	return false, fmt.Errorf("name %s/%s, uid %s, attempt %d is in use by sandbox %s: %w",
		cfg.Metadata.Namespace, cfg.Metadata.Name, cfg.Metadata.Uid, cfg.Metadata.Attempt, s.rec.ID, errdefs.ErrAlreadyExists)
}

func (s *sandbox) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// reserveSandbox returns the sandbox that has the name, or makes one.
func (e *Engine) reserveSandbox(cfg *runtimeapi.PodSandboxConfig, handler string, container bool) (*sandbox, bool, error) {
	name := sandboxName(cfg.Metadata)
	e.mu.Lock()
	if old, ok := e.names[name].(*sandbox); ok {
		e.mu.Unlock()
		return old, false, nil
	}
	e.mu.Unlock()
	s, err := e.newSandbox(cfg, handler, container)
	if err != nil {
		return nil, false, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if old, ok := e.names[name].(*sandbox); ok {
		e.releaseLabels(s.rec.Labels)
		return old, false, nil
	}
	if err := e.admit(s.listedSize()); err != nil {
		e.releaseLabels(s.rec.Labels)
		return nil, false, err
	}
	e.names[name] = s
	e.sandboxes.add(s)
	return s, true, nil
}

// newSandbox decides everything that must be recorded before it is done.
func (e *Engine) newSandbox(cfg *runtimeapi.PodSandboxConfig, handler string, container bool) (*sandbox, error) {
	rec := sandboxRecord{ID: store.NewID(), Handler: handler, CreatedAt: time.Now()}
	rec.Config.M = proto.CloneOf(cfg)
	rec.Overhead.M, rec.Resources.M = rec.Config.M.GetLinux().GetOverhead(), rec.Config.M.GetLinux().GetResources()
	e.applyDefaults(&rec)
	if err := e.placeCgroup(&rec); err != nil {
		return nil, err
	}
	if namespaceOptions(cfg).GetNetwork() == runtimeapi.NamespaceMode_POD {
		if _, err := bandwidthOf(cfg.GetAnnotations()); err != nil {
			return nil, err
		}
		rec.NetNS = e.netPin(rec.ID)
		plan, err := e.opts.Network.Plan(e.networkPod(&rec))
		if err != nil {
			return nil, fmt.Errorf("choose network for pod %s/%s: %w", cfg.Metadata.Namespace, cfg.Metadata.Name, err)
		}
		rec.Network = &plan
	}
	var err error
	if rec.Warnings, err = spec.SandboxWarnings(cfg, e.opts.Host); err != nil {
		return nil, err
	}
	if rec.Labels, err = e.podLabels(cfg); err != nil {
		return nil, err
	}
	s := e.adoptSandbox(rec, machine.State{})
	s.hasContainer = container
	s.state.Uses = sandboxSteps.usedBy(s)
	return s, nil
}

// adoptSandbox makes the object for a record.
func (e *Engine) adoptSandbox(rec sandboxRecord, state machine.State) *sandbox {
	s := &sandbox{engine: e, rec: rec, hasContainer: state.Uses&sandboxSteps.Set("container") != 0, containers: map[string]*container{}}
	m := rec.Config.M.GetMetadata()
	s.object = object{kind: sandboxSteps.Kind, what: s, owner: &e.drivers, state: state, log: e.opts.Log.With(
		slog.String("pod", m.GetNamespace()+"/"+m.GetName()), slog.String("uid", m.GetUid()), slog.String("sandbox", rec.ID))}
	return s
}

// StopSandbox ends every container of the sandbox and takes its network down.
// Nil means that no process of the pod lives and its address is free, whatever
// did it; a sandbox that does not exist is stopped.
func (e *Engine) StopSandbox(ctx context.Context, id string) error {
	s, err := e.findSandbox(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	if err := s.stop(ctx); err != nil {
		return fmt.Errorf("stop sandbox: %w", err)
	}
	return nil
}

func (s *sandbox) stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	s.changed()
	s.mu.Unlock()
	var errs []error
	outcomes := map[*container]<-chan error{}
	for _, c := range s.members() {
		outcomes[c] = c.request(machine.Event{Kind: machine.Lower, Level: containerCreated})
	}
	for c, outcome := range outcomes {
		errs = append(errs, c.await(ctx, outcome))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.await(ctx, s.request(machine.Event{Kind: machine.Lower, Level: sandboxStopped}))
}

// RemoveSandbox makes the sandbox and its containers gone, whatever their
// state. Nil means that nothing of it is left; one that does not exist is gone.
func (e *Engine) RemoveSandbox(ctx context.Context, id string) error {
	s, err := e.findSandbox(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	if err := s.remove(ctx); err != nil {
		return fmt.Errorf("remove sandbox: %w", err)
	}
	return nil
}

func (s *sandbox) remove(ctx context.Context) error {
	if err := s.stop(ctx); err != nil {
		return err
	}
	var errs []error
	for _, c := range s.members() {
		errs = append(errs, c.await(ctx, c.request(machine.Event{Kind: machine.Lower, Level: 0})))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.await(ctx, s.request(machine.Event{Kind: machine.Lower, Level: 0}))
}

// members are the containers of the sandbox.
func (s *sandbox) members() []*container {
	s.engine.mu.RLock()
	defer s.engine.mu.RUnlock()
	return slices.Collect(maps.Values(s.containers))
}

// changed publishes the view. object.mu is held.
func (s *sandbox) changed() {
	if s.gone || !s.rec.Listed && s.lastErr == nil {
		s.view.Store(nil)
		return
	}
	v := &Sandbox{
		ID: s.rec.ID, Config: s.rec.Config.M, Handler: s.rec.Handler, CreatedAt: s.rec.CreatedAt,
		State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY, IPs: s.rec.IPs, NetNS: s.rec.Namespaces.Net,
		CgroupParent: s.rec.CgroupParent, PID: s.rec.PID, Problem: s.rec.Problem, Stage: s.stage, StageSince: s.since,
		Overhead: s.rec.Overhead.M, Resources: s.rec.Resources.M, Warnings: slices.Clone(s.rec.Warnings), Defaults: s.rec.Defaults,
	}
	if s.state.Goal == sandboxReady && !s.stopping {
		v.State = runtimeapi.PodSandboxState_SANDBOX_READY
	}
	if s.lastErr != nil {
		v.Problem = text.Cut(s.lastErr.Error(), maxExitMessage)
	}
	s.view.Store(v)
	s.last.Store(v)
}

// settled notes that the sandbox has reached a level, and tells who listens.
func (s *sandbox) settled(e machine.Effect) {
	s.mu.Lock()
	if e.Err != nil && s.rec.Listed {
		s.rec.Problem = text.Cut(e.Err.Error(), maxExitMessage)
	}
	s.changed()
	listed := s.rec.Listed
	s.mu.Unlock()
	switch {
	case !listed:
	case e.Level == sandboxReady:
		s.publish(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
		s.publish(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	case e.Level == sandboxStopped:
		s.publish(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	default:
		s.publish(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
		s.publish(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
