package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
	"github.com/berth-runtime/berth/internal/pod/machine"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/shim/crilog"
	"github.com/berth-runtime/berth/internal/spec"
)

// The levels of a container. One that has exited is at the level created
// again; that it ran is in its record. Of one that a reboot has taken the
// record remains, with its exit, until it is removed.
const (
	containerGone = iota
	containerLost
	containerCreated
	containerRunning
)

// containerSteps is the step table of containers, in the order of doing.
var containerSteps stepTable[*container]

func init() { // its functions refer to it
	containerSteps = newStepTable("container", []machine.Level{
		{Name: "gone"},
		{Name: "lost"},
		{Name: "created", Fallback: containerGone, Lost: containerLost},
		{Name: "running", Fallback: containerCreated, Lost: containerCreated},
	}, []step[*container]{
		{
			name: "snapshot", from: containerCreated,
			do: (*container).prepareRootfs, undo: (*container).removeSnapshot,
		},
		{
			name: "rootfs", from: containerCreated,
			do: (*container).mountRootfs, undo: (*container).removeRootfs, probe: (*container).probeRootfs,
		},
		{
			name: "checkpoint", from: containerCreated, uses: func(c *container) bool { return c.rec.From != "" },
			do: (*container).unpack, undo: (*container).removeUnpacked, probe: (*container).probeUnpacked,
		},
		{
			name: volumesStep, from: containerCreated, uses: func(c *container) bool { return len(c.rec.Volumes) > 0 },
			do: (*container).mountVolumes, undo: (*container).unmountVolumes, probe: (*container).probeVolumes,
		},
		{
			name: "idmap", from: containerCreated, uses: (*container).hasMapped,
			do: (*container).mapMounts, undo: (*container).unmapMounts, probe: (*container).probeMapped,
		},
		{
			name: "bundle", from: containerCreated,
			do: (*container).makeBundle, undo: (*container).removeBundle, probe: (*container).probeBundle,
		},
		{
			name: containerPluginsStep, from: containerLost, late: true,
			do: (*container).askPlugins, undo: (*container).tellRemoved,
		},
		{
			name: processStep, from: containerRunning,
			do: (*container).start, undo: (*container).endProcess, probe: (*container).probeProcess, adopt: (*container).adoptProcess,
		},
	})
}

// Steps of a container that other code asks for.
const (
	volumesStep          = "volumes"
	containerPluginsStep = "nri"
	processStep          = "process"
)

func (c *container) do(ctx context.Context, step int) error { return containerSteps.do(ctx, c, step) }

func (c *container) undo(ctx context.Context, step int) error {
	return containerSteps.undo(ctx, c, step)
}

func (c *container) probe(step int) error { return containerSteps.probe(c, step) }

func (c *container) deadline(step int) time.Duration { return containerSteps.deadline(c, step) }

func (e *Engine) bundleDir(id string) string { return filepath.Join(e.opts.State, "containers", id) }

func (e *Engine) rootfsDir(id string) string { return filepath.Join(e.bundleDir(id), "rootfs") }

func (c *container) prepareRootfs(ctx context.Context) error {
	return c.engine.opts.Images.PrepareRootfs(ctx, c.rec.ID, c.rec.ImageID)
}

func (c *container) removeSnapshot(ctx context.Context) error {
	return c.engine.opts.Images.RemoveRootfs(ctx, c.rec.ID)
}

func (c *container) mountRootfs(ctx context.Context) error {
	e, id := c.engine, c.rec.ID
	if err := e.makeRootfsDir(id, rootOf(c.sandbox.rec.Config.M)); err != nil {
		return err
	}
	if label := c.rec.Labels.Mount; label != "" {
		if err := e.opts.Images.LabelRootfs(id, label); err != nil {
			return err
		}
	}
	return e.opts.Images.MountRootfs(ctx, id, e.rootfsDir(id), false, c.sandbox.mapping())
}

func (c *container) removeRootfs(ctx context.Context) error {
	return c.engine.removeRootfs(ctx, c.rec.ID)
}

func (c *container) probeRootfs() error {
	if _, err := os.Stat(c.engine.rootfsDir(c.rec.ID)); err != nil {
		return errors.New("its root file system is not mounted any more, as after a reboot of the node")
	}
	return nil
}

func (c *container) removeUnpacked(context.Context) error {
	return os.RemoveAll(string(c.engine.checkpointDir(c.rec.ID)))
}

// hasMapped reports whether the container has idmapped mounts, or volumes that its image declares.
func (c *container) hasMapped() bool {
	return usesIDMap(c.rec.Config.M) || len(c.rec.Declared.bound()) > 0
}

func (c *container) mapMounts(ctx context.Context) error {
	if err := c.createHostPaths(c.rec.Config.M.GetMounts()); err != nil {
		return err
	}
	return errors.Join(c.idmapMounts(), c.bindDeclared(ctx))
}

func (c *container) unmapMounts(ctx context.Context) error {
	return c.engine.unmapMounts(ctx, c.rec.ID)
}

func (c *container) makeBundle(ctx context.Context) error {
	if err := c.createHostPaths(c.rec.Config.M.GetMounts()); err != nil {
		return err
	}
	return c.writeBundle(ctx, c.rec.Config.M)
}

func (c *container) removeBundle(context.Context) error {
	c.bundling.Lock()
	defer c.bundling.Unlock()
	return c.engine.removeSpec(c.rec.ID)
}

func (c *container) probeBundle() error {
	if _, err := os.Stat(filepath.Join(c.engine.bundleDir(c.rec.ID), "config.json")); err != nil {
		return errors.New("its bundle is gone, as after a reboot of the node")
	}
	return nil
}

// writeBundle turns the request into an OCI bundle. The request is refused
// here if it cannot be given.
func (c *container) writeBundle(ctx context.Context, cfg *runtimeapi.ContainerConfig) error {
	e := c.engine
	out, err := c.buildSpec(ctx, cfg)
	if err != nil {
		return err
	}
	if err := errors.Join(c.matches(out.Spec), c.relabelMounts(cfg)); err != nil {
		return err
	}
	if err := c.makeDeclared(out.Spec.Process.User); err != nil {
		return err
	}
	if err := makeWorkingDir(e.rootfsDir(c.rec.ID), out.Spec.Process.Cwd, rootOf(c.sandbox.rec.Config.M)); err != nil {
		return err
	}
	if c.rec.LogPath != "" { // kubelet makes it, others rely on us
		err := crilog.At(c.logDirectory(), c.rec.LogPath).MakeParent(ctx)
		if errors.Is(err, crilog.ErrHangs) {
			return fmt.Errorf("make directory for config.log_path: %w", err)
		}
		if err != nil {
			return fmt.Errorf("make directory for config.log_path: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	if err := c.writePasswd(out.Passwd); err != nil {
		return err
	}
	if err := e.writeSpec(c.rec.ID, out.Spec); err != nil {
		return err
	}
	c.warn(out.Warnings)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Defaults = out.Defaults
	c.rec.User.M, c.rec.StopSignal = out.User, out.StopSignal
	return nil
}

func (c *container) buildSpec(ctx context.Context, cfg *runtimeapi.ContainerConfig) (*spec.Output, error) {
	e, s := c.engine, c.sandbox
	img, err := e.opts.Images.Resolve(c.rec.ImageID)
	if err != nil {
		return nil, err
	}
	cgroups, _, err := cgroup.ContainerPath(e.opts.CgroupDriver, s.rec.CgroupParent, c.rec.ID)
	if err != nil {
		return nil, err
	}
	h, err := e.opts.Handlers.Get(ctx, s.rec.Handler)
	if err != nil {
		return nil, err
	}
	paths, err := c.namespaces(h.Handler)
	if err != nil {
		return nil, err
	}
	volumes, err := c.volumePaths()
	if err != nil {
		return nil, err
	}
	files := e.store.FilesDir(s.rec.ID)
	var localtime string
	if s.rec.Timezone != "" {
		localtime = filepath.Join(files, localtimeFile)
	}
	out, err := spec.Build(ctx, spec.Input{
		Config: cfg, Pod: s.rec.Config.M, ContainerID: c.rec.ID, SandboxID: s.rec.ID, Sandboxed: s.hasContainer,
		Image: img.Config, Rootfs: e.rootfsDir(c.rec.ID), ImageVolumes: volumes, Namespaces: paths, Shm: e.shmDir(s.rec.ID),
		ResolvConf: filepath.Join(files, "resolv.conf"), Hostname: filepath.Join(files, "hostname"), Hosts: filepath.Join(files, "hosts"),
		ProcessLabel: c.rec.Labels.Process, MountLabel: c.rec.Labels.Mount,
		CgroupsPath: cgroups, Host: e.hostFor(h), OCIVersion: h.Features.OCIVersion, AllowedAnnotations: h.Annotations,
		InjectCDI: e.opts.InjectCDI, Mapped: c.mappedPaths(), Volumes: c.declaredMounts(),
		Defaults: e.opts.Defaults, Localtime: localtime, Timezone: s.rec.Timezone, Passwd: e.passwdFile(c.rec.ID),
		NoHostDevices: h.NoHostDevices, AllDevices: h.AllDevices, CgroupWritable: h.CgroupWritable,
	})
	if err != nil {
		return nil, err
	}
	if img.Foreign != "" {
		out.Warnings.Add("image.image", cfg.GetImage().GetImage(), fmt.Sprintf(
			"is for the platform %s, which is not this node's; it runs only if this host can run its programs (binfmt_misc)", img.Foreign))
	}
	return out, nil
}

// logDirectory is what the log is below.
func (c *container) logDirectory() string {
	if dir := c.sandbox.rec.Config.M.GetLogDirectory(); dir != "" {
		return filepath.Clean(dir)
	}
	return ""
}

// namespaces are those of the pod, and the PID namespace of the target
// container if the request names one.
func (c *container) namespaces(h ociruntime.Handler) (spec.Paths, error) {
	paths := c.sandbox.paths(h)
	modes := spec.ModesOf(c.rec.Config.M, c.sandbox.rec.Config.M)
	if modes.PID != runtimeapi.NamespaceMode_TARGET {
		return paths, nil
	}
	if c.sandbox.hasContainer {
		return paths, fmt.Errorf("namespace_options.target_id %q: a container in the sandbox of runtime handler %q cannot join the PID namespace of one other: %w",
			modes.TargetID, c.sandbox.rec.Handler, errdefs.ErrFailedPrecondition)
	}
	target, err := c.engine.findContainer(modes.TargetID)
	if err != nil {
		return paths, fmt.Errorf("namespace_options.target_id: %w", err)
	}
	v := target.view.Load()
	if target.sandbox != c.sandbox {
		return paths, fmt.Errorf("namespace_options.target_id %q is not in the same pod: %w", modes.TargetID, errdefs.ErrInvalidArgument)
	}
	if v == nil || v.PID == 0 {
		return paths, fmt.Errorf("namespace_options.target_id %q does not run: %w", modes.TargetID, errdefs.ErrFailedPrecondition)
	}
	paths.PID = fmt.Sprintf("/proc/%d/ns/pid", v.PID)
	return paths, nil
}

// startProcess has the supervisor run the container. A failure is an exit too:
// the container will not be started again.
func (c *container) startProcess(ctx context.Context) error {
	h, err := c.engine.opts.Handlers.Get(ctx, c.sandbox.rec.Handler)
	if err != nil {
		return err
	}
	from, err := c.restoreRequest()
	if err != nil {
		return err
	}
	cfg := c.rec.Config.M
	started, err := c.engine.opts.Shim.Start(ctx, shim.StartRequest{
		ID: c.rec.ID, SandboxID: c.rec.SandboxID, Sandboxed: c.sandbox.hasContainer, Bundle: c.engine.bundleDir(c.rec.ID), Handler: h.Handler,
		Terminal: cfg.GetTty(), Stdin: cfg.GetStdin(), StdinOnce: cfg.GetStdinOnce(),
		LogPath: c.rec.LogPath, LogDirectory: c.logDirectory(), LogLimit: c.engine.opts.LogLimit,
		CgroupPath: c.rec.CgroupPath, Deadline: c.engine.opts.RuntimeDeadline,
		Restore: from, Label: c.rec.Labels.Mount,
	})
	if err == nil && from != nil {
		err = c.verifyRestored(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.noteExitLocked(exitRecord{Code: codeStartError, Reason: reasonStartError, Message: err.Error()}, time.Now())
		return err
	}
	c.rec.StartedAt, c.rec.PID = started.At, started.PID
	if c.pending != nil {
		c.noteExitLocked(exitOf(*c.pending), c.pending.At)
	}
	return nil
}

// endProcess kills every process of the container, has the OCI runtime clean up and tells plugins.
func (c *container) endProcess(ctx context.Context) error {
	if err := c.killAndDelete(ctx); err != nil {
		return err
	}
	return c.tellStopped(ctx)
}

// killAndDelete kills every process of the container, waits for its exit code and has the OCI runtime
// clean up.
func (c *container) killAndDelete(ctx context.Context) error {
	e, id := c.engine, c.rec.ID
	if !c.hasExited() {
		if err := c.kill(ctx); err != nil {
			return err
		}
	}
	if err := e.opts.Cgroups.KillAll(ctx, c.rec.CgroupPath); err != nil {
		return err
	}
	if err := c.keepExit(); err != nil {
		c.log.Warn("write down how the container ended, before the supervisor forgets it", "error", err)
	}
	if err := e.opts.Shim.Delete(ctx, id); err != nil {
		return err
	}
	return e.opts.Cgroups.Remove(c.rec.CgroupPath)
}

// kill ends every process of the container and waits for its exit code. One
// that the supervisor does not know was never started, or was lost with it.
func (c *container) kill(ctx context.Context) error {
	err := c.engine.opts.Shim.KillAll(ctx, c.rec.ID)
	if errdefs.IsNotFound(err) {
		c.lose("the supervisor does not know it")
		return nil
	}
	if err != nil {
		return err
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("killed, but its exit was not reported: %w", ctx.Err())
	}
}

// hostFor is what containers of a handler can have on this host.
func (e *Engine) hostFor(h handlers.Info) spec.Host {
	host := e.opts.Host
	host.RecursiveReadOnly = host.RecursiveReadOnly && h.Features.RecursiveReadOnly
	if host.NoUserNamespaces == "" && !h.Features.UserNamespaces {
		host.NoUserNamespaces = fmt.Sprintf("the runtime handler %q cannot run containers in a user namespace", h.Handler.Name)
	}
	return host
}
