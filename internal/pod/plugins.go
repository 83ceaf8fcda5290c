package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/nri"
)

// Plugins get the events of an object by steps: of the beginning when the step is
// done, of the end when it is undone or the record is forgotten. Whatever kills
// the daemon, the marks show its successor which events plugins have not got,
// which then tells them; known keeps it from telling what never began.

// evictGrace is how long a container has that a plugin evicts.
const evictGrace = 10 * time.Second

var _ nri.Runtime = (*Engine)(nil)

// Known implements nri.Runtime.
func (e *Engine) Known() ([]nri.Pod, []nri.Container) {
	var pods []nri.Pod
	var containers []nri.Container
	sandboxes := e.allSandboxes()
	slices.SortFunc(sandboxes, func(a, b *sandbox) int { return a.rec.CreatedAt.Compare(b.rec.CreatedAt) })
	for _, s := range sandboxes {
		if s.isKnown() {
			pods = append(pods, s.describe())
		}
		members := s.members()
		slices.SortFunc(members, func(a, b *container) int { return a.rec.CreatedAt.Compare(b.rec.CreatedAt) })
		for _, c := range members {
			if c.isKnown() {
				containers = append(containers, c.describe())
			}
		}
	}
	return pods, containers
}

// LimitContainer implements nri.Runtime.
func (e *Engine) LimitContainer(ctx context.Context, id string, r *api.LinuxResources) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	if c.view.Load() == nil {
		return fmt.Errorf("%s is being made: %w", c, errdefs.ErrFailedPrecondition)
	}
	if len(r.GetDevices()) > 0 {
		return fmt.Errorf("%s: linux.resources.devices cannot be changed: %w", c, errdefs.ErrFailedPrecondition)
	}
	wanted, err := limitsOf(r)
	if err == nil {
		err = c.update(ctx, wanted)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	return nil
}

// EvictContainer implements nri.Runtime.
func (e *Engine) EvictContainer(id, reason string) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	c.log.Warn("a plugin has the container stopped", "reason", reason)
	e.Background(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, evictGrace+stepDeadline)
		defer cancel()
		if err := e.StopContainer(ctx, c.rec.ID, evictGrace); err != nil {
			c.log.Warn("stop a container that a plugin evicts", "error", err)
		}
	})
	return nil
}

// Background implements nri.Runtime. An engine that closes starts nothing.
func (e *Engine) Background(fn func(context.Context)) { e.drivers.start(fn) }

// subject describes the sandbox for the events of plugins.
func (s *sandbox) subject() nri.Subject {
	return func() (nri.Pod, nri.Container) { return s.describe(), nri.Container{} }
}

func (s *sandbox) describe() nri.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.rec.Namespaces
	return nri.Pod{
		ID: s.rec.ID, Config: s.rec.Config.M, Handler: s.rec.Handler, CgroupParent: s.rec.CgroupParent,
		PID: s.rec.PID, IPs: s.rec.IPs, Overhead: s.rec.Overhead.M, Resources: s.rec.Resources.M,
		Namespaces: map[specs.LinuxNamespaceType]string{
			specs.NetworkNamespace: ns.Net, specs.IPCNamespace: ns.IPC, specs.UTSNamespace: ns.UTS, specs.PIDNamespace: ns.PID,
			specs.UserNamespace: ns.User,
		},
	}
}

func (s *sandbox) isKnown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

func (s *sandbox) setKnown(known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = known
}

// tellStopped tells plugins that no process of the pod lives.
func (s *sandbox) tellStopped(ctx context.Context) error {
	if s.isKnown() {
		s.engine.opts.Plugins.StopPod(ctx, s.subject())
	}
	return nil
}

// tellRemoved tells plugins that nothing of the pod is left.
func (s *sandbox) tellRemoved(ctx context.Context) {
	if s.isKnown() {
		s.engine.opts.Plugins.RemovePod(ctx, s.subject(), func() { s.setKnown(false) })
	}
}

// subject describes the container and its pod for the events of plugins.
func (c *container) subject() nri.Subject {
	return func() (nri.Pod, nri.Container) { return c.sandbox.describe(), c.describe() }
}

func (c *container) describe() nri.Container {
	s, err := c.readSpec()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("describe the container to plugins", "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := nri.Container{
		ID: c.rec.ID, PodID: c.rec.SandboxID, Config: c.rec.Config.M, Spec: s, State: c.stateLocked(),
		CreatedAt: c.rec.CreatedAt, StartedAt: c.rec.StartedAt, FinishedAt: c.rec.FinishedAt,
		ImageID: c.rec.ImageID, ImageDigest: c.rec.ImageRef,
	}
	if d.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		d.PID = c.rec.PID
	}
	if exit := c.rec.Exit; exit != nil {
		d.ExitCode, d.Reason, d.Message = exit.Code, exit.Reason, exit.Message
	}
	return d
}

func (c *container) isKnown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known
}

func (c *container) setKnown(known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = known
}

// askPlugins tells plugins of the container that is being made, and makes it
// as they want it.
func (c *container) askPlugins(ctx context.Context) error {
	return c.engine.opts.Plugins.CreateContainer(ctx, c.subject(), func() { c.setKnown(true) }, c.adjust)
}

// adjust changes the bundle as plugins want.
func (c *container) adjust(a *api.ContainerAdjustment) error {
	e := c.engine
	s, err := c.readSpec()
	if err != nil {
		return err
	}
	cgroups := s.Linux.CgroupsPath
	if err := nri.Adjust(s, a, c.injectCDI); err != nil {
		return err
	}
	path := c.rec.CgroupPath
	if s.Linux.CgroupsPath != cgroups {
		if path, err = cgroup.PathOf(e.opts.CgroupDriver, s.Linux.CgroupsPath); err != nil {
			return fmt.Errorf("linux.cgroups_path: %w", err)
		}
	}
	wanted, err := limitsOf(a.GetLinux().GetResources())
	if err != nil {
		return err
	}
	after := c.limits().merge(wanted)
	limit, swap := after.cri.GetMemoryLimitInBytes(), after.cri.GetMemorySwapLimitInBytes()
	if wanted.cri.GetMemorySwapLimitInBytes() == 0 && swap > 0 && swap < limit {
		after.cri.MemorySwapLimitInBytes = limit // it is of memory and swap together
	}
	if v := a.GetLinux().GetOomScoreAdj(); v != nil {
		after.cri.OomScoreAdj = v.GetValue()
	}
	if err := after.put(s, e.opts.Host); err != nil {
		return err
	}
	if err := c.engine.writeSpec(c.rec.ID, s); err != nil {
		return err
	}
	c.setLimits(after)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.CgroupPath = path
	return nil
}

// injectCDI adds devices of the Container Device Interface, which plugins want.
func (c *container) injectCDI(s *specs.Spec, devices []string) error {
	if c.engine.opts.InjectCDI == nil {
		return fmt.Errorf("the Container Device Interface is switched off, cdi.spec_dirs is empty: %w", errdefs.ErrFailedPrecondition)
	}
	return c.engine.opts.InjectCDI(s, devices)
}

// start starts the process, unless a plugin refuses. That is an exit, too: the
// container will not be started again.
func (c *container) start(ctx context.Context) error {
	if err := c.engine.opts.Plugins.StartContainer(ctx, c.subject()); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.noteExitLocked(exitRecord{Code: codeStartError, Reason: reasonStartError, Message: err.Error()}, time.Now())
		return err
	}
	if err := c.startProcess(ctx); err != nil {
		return err
	}
	c.restored()
	c.engine.opts.Plugins.ContainerStarted(ctx, c.subject())
	return nil
}

// tellStopped tells plugins that no process of the container lives. One that
// never began to start has not stopped.
func (c *container) tellStopped(ctx context.Context) error {
	if c.isKnown() && c.hasExited() {
		c.engine.opts.Plugins.StopContainer(ctx, c.subject())
	}
	return nil
}

// tellRemoved tells plugins that the container goes.
func (c *container) tellRemoved(ctx context.Context) error {
	if c.isKnown() {
		c.engine.opts.Plugins.RemoveContainer(ctx, c.subject(), func() { c.setKnown(false) })
	}
	return nil
}
