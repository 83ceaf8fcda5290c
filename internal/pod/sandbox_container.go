package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/staticelf"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/spec"
)

// waitProgram is what a sandbox container runs: all that is in its root file system.
const waitProgram = "pause"

// startContainer makes and starts the sandbox container. The network stands: these
// runtimes read it once.
func (s *sandbox) startContainer(ctx context.Context) error {
	e, id := s.engine, s.rec.ID
	h, err := e.opts.Handlers.Get(ctx, s.rec.Handler)
	if err != nil {
		return err
	}
	if err := e.mountWaiter(id, rootOf(s.rec.Config.M), s.rec.Labels.Mount); err != nil {
		return err
	}
	cgroups, path, err := cgroup.ContainerPath(e.opts.CgroupDriver, s.rec.CgroupParent, id)
	if err != nil {
		return err
	}
	oci, err := spec.BuildSandbox(spec.Input{
		Pod: s.rec.Config.M, Sysctls: s.rec.sysctls(), SandboxID: id, Rootfs: e.rootfsDir(id), Namespaces: s.paths(h.Handler), Shm: e.shmDir(id),
		ResolvConf: filepath.Join(e.store.FilesDir(id), "resolv.conf"), CgroupsPath: cgroups,
		ProcessLabel: s.rec.Labels.Process, MountLabel: s.rec.Labels.Mount,
		Host: e.hostFor(h), OCIVersion: h.Features.OCIVersion, AllowedAnnotations: h.Annotations,
	}, "/"+waitProgram, s.limits())
	if err != nil {
		return err
	}
	if err := e.writeSpec(id, oci); err != nil {
		return err
	}
	started, err := e.opts.Shim.Start(ctx, shim.StartRequest{
		ID: id, SandboxID: id, Bundle: e.bundleDir(id), Handler: h.Handler, CgroupPath: path, Deadline: e.opts.RuntimeDeadline,
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.PID = started.PID
	return nil
}

// endContainer ends the sandbox container, with whatever still runs in its sandbox.
func (s *sandbox) endContainer(ctx context.Context) error {
	e, id := s.engine, s.rec.ID
	if err := e.opts.Shim.Delete(ctx, id); err != nil {
		return err
	}
	_, path, err := cgroup.ContainerPath(e.opts.CgroupDriver, s.rec.CgroupParent, id)
	if err != nil {
		return err
	}
	if err := e.opts.Cgroups.KillAll(ctx, path); err != nil {
		return err
	}
	if err := e.opts.Cgroups.Remove(path); err != nil {
		return err
	}
	if err := e.removeSpec(id); err != nil {
		return err
	}
	return e.removeRootfs(ctx, id)
}

// mountWaiter makes the root file system of a sandbox container: a file system of
// its own, for the one that the state directory is on may forbid to execute.
func (e *Engine) mountWaiter(id string, root owner, label string) error {
	program, err := staticelf.Wait()
	if err != nil {
		return err
	}
	rootfs := e.rootfsDir(id)
	if err := e.makeRootfsDir(id, root); err != nil {
		return err
	}
	options := "mode=755,size=64k"
	if label != "" {
		options += fmt.Sprintf(",context=%q", label) // it contains commas
	}
	if err := unix.Mount("sandbox", rootfs, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", rootfs, err)
	}
	//nolint:gosec // it is a program
	if err := os.WriteFile(filepath.Join(rootfs, waitProgram), program, 0o755); err != nil {
		return fmt.Errorf("write the program of the sandbox container: %w", err)
	}
	return nil
}

// paths are the namespaces that containers of the pod join. In a sandbox the path of
// the PID namespace is only a name for one. A command gets the same for the sandbox
// container and for those that join it; a shim takes that of the process that it has
// given for the one of the sandbox container.
func (s *sandbox) paths(h ociruntime.Handler) spec.Paths {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.rec.Namespaces
	paths := spec.Paths{Net: ns.Net, IPC: ns.IPC, UTS: ns.UTS, PID: ns.PID, User: ns.User}
	switch {
	case !s.hasContainer:
	case h.Type != ociruntime.TypeShimV2:
		paths.PID = filepath.Join(s.engine.namespaceDir(s.rec.ID), "pid")
	case s.rec.PID != 0:
		paths.PID = fmt.Sprintf("/proc/%d/ns/pid", s.rec.PID)
	}
	return paths
}

// limits are those of the pod as a whole, with what its sandbox takes.
func (s *sandbox) limits() *runtimeapi.LinuxContainerResources {
	s.mu.Lock()
	defer s.mu.Unlock()
	return spec.AddOverhead(s.rec.Resources.M, s.rec.Overhead.M)
}

// passLimits gives changed limits to the sandbox. Kubelet changes the pod's cgroup
// itself, so a runtime that cannot do it only leaves the sandbox as large as it was.
func (s *sandbox) passLimits(ctx context.Context) {
	if !s.hasContainer {
		return
	}
	oci, err := spec.Resources(s.limits(), s.engine.opts.Host, nil)
	if err == nil {
		err = s.engine.opts.Shim.Update(ctx, s.rec.ID, oci)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("give the resources of the pod to its sandbox", "error", err)
	}
}
