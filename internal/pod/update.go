package pod

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/spec"
)

// UpdateContainer changes the limits of a created or running container without
// restarting it. What the request leaves empty stays as it is. Either all of it
// is in force when nil is returned, or none is.
func (e *Engine) UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	c, err := e.findContainer(id)
	if err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	if err := c.update(ctx, r); err != nil {
		return fmt.Errorf("update %s: %w", c, err)
	}
	return nil
}

func (c *container) update(ctx context.Context, r *runtimeapi.LinuxContainerResources) error {
	c.updating.Lock()
	defer c.updating.Unlock()
	c.mu.Lock()
	before := c.rec.Resources.M
	c.mu.Unlock()
	merged := spec.MergeResources(before, r)
	if err := c.apply(ctx, merged); err != nil {
		return err
	}
	if err := c.save(); err != nil {
		return errors.Join(err, c.apply(context.WithoutCancel(ctx), before))
	}
	return nil
}

// apply puts limits in force: in the kernel for a running container, in the
// bundle for one that is to be started.
func (c *container) apply(ctx context.Context, r *runtimeapi.LinuxContainerResources) error {
	if _, err := spec.Resources(r, c.engine.opts.Host); err != nil {
		return err
	}
	c.mu.Lock()
	state := c.stateLocked()
	before := c.rec.Resources.M
	c.mu.Unlock()
	var err error
	switch state {
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		if err = c.enforce(ctx, r); err != nil {
			// OCI runtimes set one limit after the other and stop at the first that fails.
			err = errors.Join(err, c.enforce(context.WithoutCancel(ctx), spec.RevertResources(before, r)))
		}
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		err = c.rewriteResources(r)
	default:
		err = fmt.Errorf("it is %s: %w", stateName(state), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Resources.M = r
	c.changed()
	return nil
}

// enforce gives limits to the kernel.
func (c *container) enforce(ctx context.Context, r *runtimeapi.LinuxContainerResources) error {
	limits, err := spec.Resources(r, c.engine.opts.Host)
	if err != nil {
		return err
	}
	if err := c.engine.opts.Shim.Update(ctx, c.rec.ID, limits); err != nil {
		return err
	}
	if spec.Unthrottled(r, c.engine.opts.Host) {
		return c.engine.opts.Cgroups.LiftCPUQuota(c.rec.CgroupPath)
	}
	return nil
}

// rewriteResources makes the bundle of a created container anew.
func (c *container) rewriteResources(r *runtimeapi.LinuxContainerResources) error {
	c.mu.Lock()
	cfg := proto.CloneOf(c.rec.Config.M)
	c.mu.Unlock()
	if cfg.Linux == nil {
		cfg.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	cfg.Linux.Resources = r
	return c.writeBundle(cfg)
}

// UpdateSandbox accepts the resources of a pod. Kubelet sets the pod's cgroup
// itself; nothing of ours depends on it. Kubelet 1.37 rejects a resize on any
// error but Unimplemented, so this never fails for a sandbox that exists.
func (e *Engine) UpdateSandbox(_ context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	s, err := e.findSandbox(id)
	if err != nil {
		return fmt.Errorf("update sandbox: %w", err)
	}
	s.log.Debug("resources of the pod changed", "overhead", overhead, "resources", resources)
	return nil
}

// ReopenLog has the supervisor open the log file anew, after somebody renamed
// it. No line is lost, and on an error no file was made.
func (e *Engine) ReopenLog(ctx context.Context, id string) error {
	c, err := e.running(id)
	if err != nil {
		return fmt.Errorf("reopen log: %w", err)
	}
	if err := e.opts.Shim.ReopenLog(ctx, c.rec.ID); err != nil {
		return fmt.Errorf("reopen log of %s: %w", c, err)
	}
	return nil
}
