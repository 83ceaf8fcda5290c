package pod

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/checkpoint"
	"github.com/berth-runtime/berth/internal/pod/machine"
	"github.com/berth-runtime/berth/internal/pod/store"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/spec"
)

// container is one container. What has no comment is guarded by object.mu.
type container struct {
	object
	engine  *Engine
	sandbox *sandbox
	rec     containerRecord
	// exited is closed once the exit is known; it is never replaced.
	exited chan struct{}
	// pending is an exit that was reported before the start was.
	pending *shim.Exit
	// exitKept tells that the record on disk has the exit.
	exitKept bool
	// signalled tells that the stop signal was sent: it is sent once.
	signalled bool
	// updating is held while limits are changed, which are one at a time.
	updating sync.Mutex
	// bundling is held while the bundle is rewritten, or removed.
	bundling sync.Mutex
	// saving is held while the record is written: an update of limits saves
	// beside the driver. It guards forgotten: there shall be no record any more.
	saving    sync.Mutex
	forgotten bool
	// claimed tells that a caller has received the container's ID.
	claimed bool
	// dumping tells that a checkpoint of it is being made.
	dumping bool
	// known tells that plugins know of the container.
	known bool
	// fresh tells that it was not made yet when this daemon began; plugins are
	// notified once that it is.
	fresh bool
	// view is what readers get; nil while the container is not to be seen.
	view atomic.Pointer[Container]
	// published are the events that were published.
	published published
	// layer and cpu are what readings of its figures remember.
	layer layer
	cpu   rate
}

func (c *container) objectID() string { return c.rec.ID }

func (c *container) objectLabels() map[string]string { return c.rec.Config.M.GetLabels() }

// String names the container in errors. Like that of its pod, the text is the same at each attempt.
func (c *container) String() string {
	return fmt.Sprintf("container %s of %s", c.rec.Config.M.GetMetadata().GetName(), c.sandbox)
}

// containerName is what may exist once within a sandbox.
func containerName(sandboxID string, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("container %s/%s/%d", sandboxID, m.GetName(), m.GetAttempt())
}

// CreateContainer prepares a container so that only its process is missing,
// and returns its ID. Everything that can be refused is refused here. After an
// error nothing of it is left. The same request while one is in flight joins it.
func (e *Engine) CreateContainer(ctx context.Context, sandboxID string, cfg *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) (string, error) {
	return e.createContainer(ctx, sandboxID, cfg, pod, "")
}

// createContainer is CreateContainer, also for a container that goes on from a
// checkpoint: from is its archive.
func (e *Engine) createContainer(ctx context.Context, sandboxID string, cfg *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig, from string) (string, error) {
	s, err := e.findSandbox(sandboxID)
	if err != nil {
		return "", fmt.Errorf("create container: %w", err)
	}
	if pod == nil {
		pod = s.rec.Config.M
	}
	pod, _ = spec.CanonicalSandbox(pod)
	cfg, ignored := spec.Canonical(cfg, pod)
	if err := spec.Validate(cfg, pod); err != nil {
		return "", fmt.Errorf("create container in %s: %w", s, err)
	}
	for {
		c, created, err := e.reserveContainer(s, cfg, from)
		if err != nil {
			return "", fmt.Errorf("create container %s in %s: %w", cfg.Metadata.Name, s, err)
		}
		if created {
			c.warn(ignored)
		} else {
			again, err := c.mayJoin(ctx, cfg)
			if err != nil {
				return "", fmt.Errorf("create container in %s: %w", s, err)
			}
			if again {
				continue
			}
		}
		if err := c.await(ctx, c.request(machine.Event{Kind: machine.Raise, Level: containerCreated})); err != nil {
			return "", fmt.Errorf("create container: %w", err)
		}
		c.mu.Lock()
		c.claimed = true
		c.mu.Unlock()
		return c.rec.ID, nil
	}
}

// mayJoin is for containers what it is for sandboxes.
func (c *container) mayJoin(ctx context.Context, cfg *runtimeapi.ContainerConfig) (again bool, err error) {
	same := proto.Equal(c.rec.Config.M, cfg)
	c.mu.Lock()
	rising, listed, claimed, goal := c.state.Rising(), c.rec.Listed, c.claimed, c.state.Goal
	c.mu.Unlock()
	switch {
	case same && rising && !listed, same && listed && !claimed && goal == containerCreated:
		c.log.Info("request joins the one in flight")
		return false, nil
	case !rising && !listed:
		return true, c.await(ctx, c.request(machine.Event{Kind: machine.Lower}))
	}
	return false, fmt.Errorf("name %s, attempt %d is in use by container %s: %w",
		cfg.Metadata.Name, cfg.Metadata.Attempt, c.rec.ID, errdefs.ErrAlreadyExists)
}

// reserveContainer returns the container that has the name, or makes one.
func (e *Engine) reserveContainer(s *sandbox, cfg *runtimeapi.ContainerConfig, from string) (*container, bool, error) {
	name := containerName(s.rec.ID, cfg.Metadata)
	e.mu.RLock()
	old, ok := e.names[name].(*container)
	e.mu.RUnlock()
	if ok {
		return old, false, nil
	}
	c, err := e.newContainer(s, cfg, from)
	if err != nil {
		return nil, false, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if old, ok := e.names[name].(*container); ok {
		e.releaseLabels(c.rec.Labels)
		return old, false, nil
	}
	if v := s.view.Load(); v == nil || v.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, false, fmt.Errorf("sandbox is not ready: %w", errdefs.ErrFailedPrecondition)
	}
	if err := e.admit(c.listedSize()); err != nil {
		e.releaseLabels(c.rec.Labels)
		return nil, false, err
	}
	e.names[name] = c
	e.containers.add(c)
	s.containers[c.rec.ID] = c
	return c, true, nil
}

// newContainer decides everything that must be recorded before it is done.
func (e *Engine) newContainer(s *sandbox, cfg *runtimeapi.ContainerConfig, from string) (*container, error) {
	ref := cfg.GetImage().GetImage()
	img, err := e.opts.Images.Resolve(ref)
	if filepath.IsAbs(ref) || err == nil && checkpoint.OfImage(img.Annotations) {
		return nil, fmt.Errorf("config.image.image %q: it is no image that a container can run from; of checkpoints, RestorePod makes whole pods, from what CheckpointPod has written: %w",
			ref, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("config.image.image %q: %w", ref, err)
	}
	if img.ArtifactType != "" {
		return nil, fmt.Errorf("config.image.image %q: it is an artifact of type %q, not an image that a container can run from: %w",
			ref, img.ArtifactType, errdefs.ErrInvalidArgument)
	}
	rec := containerRecord{ID: store.NewID(), SandboxID: s.rec.ID, CreatedAt: time.Now(), ImageID: img.ID, ImageRef: img.ID}
	if len(img.Digests) > 0 {
		rec.ImageRef = img.Digests[0]
	}
	rec.Config.M = proto.CloneOf(cfg)
	if rec.Volumes, err = e.resolveVolumes(cfg); err != nil {
		return nil, err
	}
	if rec.Declared, err = e.declaredOf(img.Config, cfg); err != nil {
		return nil, err
	}
	rec.Resources.M = proto.CloneOf(cfg.GetLinux().GetResources())
	if dir := s.rec.Config.M.GetLogDirectory(); dir != "" && cfg.GetLogPath() != "" {
		rec.LogPath = filepath.Join(dir, cfg.GetLogPath())
	}
	if _, rec.CgroupPath, err = cgroup.ContainerPath(e.opts.CgroupDriver, s.rec.CgroupParent, rec.ID); err != nil {
		return nil, fmt.Errorf("linux.cgroup_parent: %w", err)
	}
	if rec.Labels, err = s.containerLabels(cfg); err != nil {
		return nil, err
	}
	rec.From = from
	c := e.adoptContainer(s, rec, machine.State{})
	c.state.Uses = containerSteps.usedBy(c)
	c.fresh = true
	return c, nil
}

// adoptContainer makes the object for a record.
func (e *Engine) adoptContainer(s *sandbox, rec containerRecord, state machine.State) *container {
	c := &container{engine: e, sandbox: s, rec: rec, exited: make(chan struct{}), exitKept: rec.Exit != nil}
	c.skipTold()
	if rec.Exit != nil {
		close(c.exited)
	}
	c.object = object{kind: containerSteps.Kind, what: c, owner: &e.drivers, state: state, log: s.log.With(
		slog.String("container", rec.Config.M.GetMetadata().GetName()), slog.String("container_id", rec.ID))}
	return c
}

// StartContainer starts the process of a created container. A container that
// could not start is EXITED with reason StartError.
func (e *Engine) StartContainer(ctx context.Context, id string) error {
	c, err := e.findContainer(id)
	if err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	outcome, err := c.requestStart()
	if err != nil {
		return fmt.Errorf("start %s: %w", c, err)
	}
	if err := c.await(ctx, outcome); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	return nil
}

// requestStart asks for the start of a container that was never started. A request that
// stops it or its sandbox comes before that, and is seen, or after, and stops it.
func (c *container) requestStart() (<-chan error, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.Exit != nil || !c.rec.StartedAt.IsZero() {
		return nil, fmt.Errorf("it is %s, only a created container can be started: %w", stateName(c.stateLocked()), errdefs.ErrFailedPrecondition)
	}
	if v := c.sandbox.view.Load(); v == nil || v.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, fmt.Errorf("its sandbox is not ready: %w", errdefs.ErrFailedPrecondition)
	}
	return c.requestLocked(machine.Event{Kind: machine.Raise, Level: containerRunning}), nil
}

// RemoveContainer makes the container gone, whatever its state; its log file
// stays. A container that does not exist is gone.
func (e *Engine) RemoveContainer(ctx context.Context, id string) error {
	c, err := e.findContainer(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	if err := c.await(ctx, c.request(machine.Event{Kind: machine.Lower, Level: 0})); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	return nil
}

// stateLocked is what CRI calls the container's state.
func (c *container) stateLocked() runtimeapi.ContainerState {
	switch {
	case c.rec.Exit != nil:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case !c.rec.StartedAt.IsZero():
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case c.rec.Problem != "":
		return runtimeapi.ContainerState_CONTAINER_UNKNOWN
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

func stateName(s runtimeapi.ContainerState) string {
	return map[runtimeapi.ContainerState]string{
		runtimeapi.ContainerState_CONTAINER_CREATED: "created",
		runtimeapi.ContainerState_CONTAINER_RUNNING: "running",
		runtimeapi.ContainerState_CONTAINER_EXITED:  "exited",
		runtimeapi.ContainerState_CONTAINER_UNKNOWN: "in an unknown state",
	}[s]
}

// changed publishes the view. object.mu is held.
func (c *container) changed() {
	if c.gone || !c.rec.Listed && c.lastErr == nil {
		c.view.Store(nil)
		return
	}
	v := &Container{
		ID: c.rec.ID, SandboxID: c.rec.SandboxID, Config: c.rec.Config.M, ImageID: c.rec.ImageID, ImageRef: c.rec.ImageRef,
		State: c.stateLocked(), CreatedAt: c.rec.CreatedAt, StartedAt: c.rec.StartedAt, FinishedAt: c.rec.FinishedAt,
		LogPath: c.rec.LogPath, User: c.rec.User.M, Resources: c.rec.Resources.M, CgroupPath: c.rec.CgroupPath,
		VolumeImages: c.volumeImages(), SnapshotKey: c.rec.ID, Handler: c.sandbox.rec.Handler, Stage: c.stage, StageSince: c.since,
		StopSignal: spec.SignalEnum(c.rec.StopSignal), Message: c.rec.Problem, Warnings: slices.Clone(c.rec.Warnings), Defaults: c.rec.Defaults,
	}
	if exit := c.rec.Exit; exit != nil {
		v.ExitCode, v.Reason, v.Message = exit.Code, exit.Reason, exit.Message
	} else if !c.rec.StartedAt.IsZero() {
		v.PID = c.rec.PID
	}
	if c.lastErr != nil {
		v.Message = c.lastErr.Error()
	}
	c.view.Store(v)
}
