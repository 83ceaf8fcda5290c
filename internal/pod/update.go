package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/nri"
	"github.com/berth-runtime/berth/internal/pod/machine"
	"github.com/berth-runtime/berth/internal/spec"
	"github.com/berth-runtime/berth/internal/warning"
)

// UpdateContainer changes the limits of a created or running container without
// restarting it. What the request leaves empty stays as it is. Either all of it
// is in force when nil is returned, or none is.
func (e *Engine) UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	c, err := e.findContainer(id)
	if err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	// By itself first: an error then counts the request's own items.
	if err := spec.CheckUpdate(r, e.opts.Host); err != nil {
		return fmt.Errorf("update %s: %w", c, err)
	}
	wanted, err := e.opts.Plugins.UpdateContainer(ctx, c.subject(), r)
	if err != nil {
		return fmt.Errorf("update %s: %w", c, err)
	}
	changed, err := limitsOf(wanted)
	if err == nil {
		changed.cri = spec.MergeResources(r, changed.cri)
		err = c.update(ctx, changed)
	}
	if err != nil {
		return fmt.Errorf("update %s: %w", c, err)
	}
	e.opts.Plugins.ContainerUpdated(ctx, c.subject())
	return nil
}

func (c *container) update(ctx context.Context, r limits) error {
	c.updating.Lock()
	defer c.updating.Unlock()
	before := c.limits()
	undo, err := c.apply(ctx, before, before.merge(r))
	if err != nil {
		return err
	}
	if err := c.save(); err != nil {
		return errors.Join(err, undo(context.WithoutCancel(ctx)))
	}
	return nil
}

// undoFunc puts back what was before a change.
type undoFunc func(context.Context) error

// apply puts limits in force: in the kernel for a running container, in the
// bundle for one that is to be started.
func (c *container) apply(ctx context.Context, before, r limits) (undoFunc, error) {
	var warnings warning.List
	if _, err := spec.Resources(r.cri, c.engine.opts.Host, &warnings); err != nil {
		return nil, err
	}
	c.mu.Lock()
	state := c.stateLocked()
	c.mu.Unlock()
	var undo undoFunc
	var err error
	switch state {
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		undo, err = c.applyRunning(ctx, before, r)
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		undo, err = c.applyCreated(ctx, before, r)
	default:
		err = fmt.Errorf("it is %s: %w", stateName(state), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	c.setLimits(r)
	c.warn(warnings)
	return func(ctx context.Context) error {
		c.setLimits(before)
		return undo(ctx)
	}, nil
}

// applyRunning changes the limits of a running container.
func (c *container) applyRunning(ctx context.Context, before, r limits) (undoFunc, error) {
	score, err := c.oomScore()
	if err != nil {
		return nil, err
	}
	var sizes []string
	for _, l := range r.cri.GetHugepageLimits() {
		sizes = append(sizes, l.GetPageSize())
	}
	kept, err := c.engine.opts.Cgroups.Keep(c.rec.CgroupPath, sizes...)
	if err != nil {
		return nil, err
	}
	undo := func(ctx context.Context) error {
		return errors.Join(c.enforce(ctx, before.revert(r)), kept.Restore(), c.setOOMScore(score))
	}
	err = c.enforce(ctx, r)
	if err == nil && r.cri.GetOomScoreAdj() != 0 {
		err = c.setOOMScore(max(int(r.cri.GetOomScoreAdj()), c.engine.opts.Host.MinOOMScoreAdj))
	}
	if err != nil {
		// OCI runtimes set one limit after the other and stop at the first that fails.
		return nil, errors.Join(err, undo(context.WithoutCancel(ctx)))
	}
	return undo, nil
}

// applyCreated rewrites the bundle. A start that was requested meanwhile may
// have read the old one: what it starts is changed once it runs.
func (c *container) applyCreated(ctx context.Context, before, r limits) (undoFunc, error) {
	if err := c.rewriteResources(r); err != nil {
		return nil, err
	}
	started := c.startInFlight()
	if started == nil {
		return func(context.Context) error { return c.rewriteResources(before) }, nil
	}
	if err := c.await(ctx, started); err != nil {
		return nil, err
	}
	return c.applyRunning(ctx, before, r)
}

// startInFlight gets the outcome of a start that was requested; nil if none was.
func (c *container) startInFlight() <-chan error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Goal != containerRunning {
		return nil
	}
	return c.requestLocked(machine.Event{Kind: machine.Raise, Level: containerRunning})
}

// enforce gives limits to the kernel.
func (c *container) enforce(ctx context.Context, r limits) error {
	oci, err := spec.Resources(r.cri, c.engine.opts.Host, nil)
	if err != nil {
		return err
	}
	nri.Apply(oci, r.more)
	unbounded := dropUnbounded(oci)
	cgroups, path := c.engine.opts.Cgroups, c.rec.CgroupPath
	unthrottled := spec.Unthrottled(r.cri, c.engine.opts.Host)
	if unthrottled && oci.CPU != nil { // by a period alone runc means one for the quota that was
		oci.CPU.Period = nil
	}
	if err := c.engine.opts.Shim.Update(ctx, c.rec.ID, oci); err != nil {
		return tooLittleMemory(err, r.cri.GetMemoryLimitInBytes())
	}
	for _, l := range oci.HugepageLimits { // which runc leaves out of an update
		if err := cgroups.LimitHugepages(path, l.Pagesize, l.Limit); err != nil {
			return err
		}
	}
	if unbounded {
		if err := cgroups.LiftTaskLimit(path); err != nil {
			return err
		}
	}
	if unthrottled {
		return cgroups.LiftCPUQuota(path, r.cri.GetCpuPeriod())
	}
	return nil
}

// tooLittleMemory names the field if an OCI runtime could not set a memory limit, for the kernel sets none that is
// below what the container uses and keeps.
func tooLittleMemory(err error, limit int64) error {
	if limit > 0 && errdefs.IsFailedPrecondition(err) && strings.Contains(err.Error(), "memory") {
		return fmt.Errorf("linux.resources.memory_limit_in_bytes %d: the container uses more and cannot give it back: %w", limit, err)
	}
	return err
}

// rewriteResources changes the limits in the bundle of a created container; all
// else in there stays as the request and plugins made it. What is to be removed
// stays as it is: nothing may come into the bundle any more.
func (c *container) rewriteResources(r limits) error {
	c.bundling.Lock()
	defer c.bundling.Unlock()
	c.mu.Lock()
	goal := c.state.Goal
	c.mu.Unlock()
	if goal < containerCreated {
		return errStopped
	}
	s, err := c.readSpec()
	if err != nil {
		return err
	}
	if err := r.put(s, c.engine.opts.Host); err != nil {
		return err
	}
	return c.engine.writeSpec(c.rec.ID, s)
}

// UpdateSandbox notes what a pod as a whole is given; what is nil stays as it
// is. Kubelet sets the pod's cgroup itself, and nothing of ours depends on it.
// It rejects a resize on any error but Unimplemented, and calls again with the
// former values to take one back: so for a sandbox that exists this never fails,
// unless a plugin refuses it.
func (e *Engine) UpdateSandbox(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	s, err := e.findSandbox(id)
	if err != nil {
		return fmt.Errorf("update sandbox: %w", err)
	}
	if err := e.opts.Plugins.UpdatePod(ctx, s.subject(), overhead, resources); err != nil {
		return fmt.Errorf("update %s: %w", s, err)
	}
	s.mu.Lock()
	if overhead != nil {
		s.rec.Overhead.M = proto.CloneOf(overhead)
	}
	if resources != nil {
		s.rec.Resources.M = proto.CloneOf(resources)
	}
	s.changed()
	gone := s.gone
	s.mu.Unlock()
	if gone {
		return fmt.Errorf("update sandbox: %w", notFound("sandbox", id))
	}
	if err := s.save(); err != nil {
		s.log.Warn("the resources of the pod are known until the daemon restarts only", "error", err)
	}
	s.passLimits(ctx)
	e.opts.Plugins.PodUpdated(ctx, s.subject())
	return nil
}
