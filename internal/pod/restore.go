package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/checkpoint"
	"github.com/berth-runtime/berth/internal/pod/store"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/spec"
)

// Restore says which pod to make from which checkpoint.
type Restore struct {
	// Path is the directory of the checkpoint; it is not changed.
	Path string
	// Config and Handler are those of the new sandbox, Containers those of its
	// containers, by whose names the checkpoint is matched.
	Config     *runtimeapi.PodSandboxConfig
	Handler    string
	Containers []*runtimeapi.ContainerConfig
	// Options are refused: there are none.
	Options map[string]string
}

// RestoreSandbox makes a pod whose containers, once started, go on where a
// checkpoint found those of another. Nil means that the sandbox is ready and every
// container created, and that the checkpoint is needed no more; the IDs of the
// containers are by name. After an error nothing is left.
func (e *Engine) RestoreSandbox(ctx context.Context, r Restore) (id string, containers map[string]string, err error) {
	archives, err := e.checkRestore(ctx, r)
	if err != nil {
		return "", nil, fmt.Errorf("restore pod: %w", err)
	}
	id, err = e.RunSandbox(ctx, r.Config, r.Handler)
	if err != nil {
		return "", nil, fmt.Errorf("restore pod: %w", err)
	}
	containers, err = e.restoreContainers(ctx, id, r, archives)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepDeadline)
		defer cancel()
		return "", nil, errors.Join(fmt.Errorf("restore pod: %w", err), e.RemoveSandbox(undo, id))
	}
	return id, containers, nil
}

// checkRestore refuses what can be refused before anything is made.
func (e *Engine) checkRestore(ctx context.Context, r Restore) (map[string]*checkpoint.Archive, error) {
	if err := refuseOptions(r.Options); err != nil {
		return nil, err
	}
	if err := checkDirectory("checkpoint_path", r.Path); err != nil {
		return nil, err
	}
	if _, _, ok := spec.UserNamespace(r.Config); ok {
		return nil, fmt.Errorf("config.linux.security_context.namespace_options.userns_options.mode %q: CRIU restores processes into "+
			"a new user namespace, which has no rights over the namespaces of the pod: %w", runtimeapi.NamespaceMode_POD, errdefs.ErrInvalidArgument)
	}
	h, err := e.opts.Handlers.Get(ctx, r.Handler)
	if err != nil {
		return nil, err
	}
	if !h.Features.Checkpoint {
		return nil, fmt.Errorf("runtime_handler %q: its OCI runtime cannot restore containers on this host: %w", h.Handler.Name, errdefs.ErrFailedPrecondition)
	}
	asked := map[string]bool{}
	for i, cfg := range r.Containers {
		name := cfg.GetMetadata().GetName()
		if name == "" || asked[name] {
			return nil, fmt.Errorf("container_configs[%d].metadata.name %q: must be unique and not empty: %w", i, name, errdefs.ErrInvalidArgument)
		}
		asked[name] = true
	}
	_, archives, err := checkpoint.OpenPod(r.Path)
	if err != nil {
		return nil, err
	}
	has, wants := slices.Sorted(maps.Keys(archives)), slices.Sorted(maps.Keys(asked))
	if len(wants) == 0 || !slices.Equal(has, wants) {
		return nil, fmt.Errorf("container_configs: the checkpoint has the containers %s, the request names %s: %w",
			strings.Join(has, ", "), strings.Join(wants, ", "), errdefs.ErrInvalidArgument)
	}
	for _, cfg := range r.Containers {
		if err := e.checkImage(cfg, archives[cfg.Metadata.Name]); err != nil {
			return nil, err
		}
	}
	return archives, nil
}

// checkImage refuses another image than the one whose files the checkpoint changes.
func (e *Engine) checkImage(cfg *runtimeapi.ContainerConfig, a *checkpoint.Archive) error {
	ref := cfg.GetImage().GetImage()
	img, err := e.opts.Images.Resolve(ref)
	if err != nil {
		return fmt.Errorf("container %s: image.image %q: %w", cfg.Metadata.Name, ref, err)
	}
	if img.ID != a.Container.ImageID {
		return fmt.Errorf("container %s: image.image %q: it is %s, the checkpoint was made of %s: %w",
			cfg.Metadata.Name, ref, img.ID, a.Container.ImageID, errdefs.ErrInvalidArgument)
	}
	return nil
}

// restoreContainers creates the containers in their sandbox. Should the daemon
// die meanwhile, the next one removes the sandbox.
func (e *Engine) restoreContainers(ctx context.Context, id string, r Restore, archives map[string]*checkpoint.Archive) (made map[string]string, err error) {
	s, err := e.findSandbox(id)
	if err != nil {
		return nil, err
	}
	note := string(e.checkpointDir(store.NewID())) + noteExt
	if err := e.store.Write(note, intent{Sandbox: id}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, removeFile(note)) }()
	if err := s.importShm(ctx, archives); err != nil {
		return nil, err
	}
	made = map[string]string{}
	for _, cfg := range r.Containers {
		name := cfg.Metadata.Name
		if made[name], err = e.createContainer(ctx, id, cfg, nil, archives[name].Path()); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// unpack puts the files of the checkpoint where the container finds them: its
// processes beside the records, and its changed files into its root file system.
func (c *container) unpack(ctx context.Context) error {
	a, err := checkpoint.Open(c.rec.From)
	if err != nil {
		return err
	}
	dir := c.engine.checkpointDir(c.rec.ID)
	if err := os.RemoveAll(string(dir)); err != nil { // an earlier attempt may have been cut off
		return err
	}
	if err := dir.Make(); err != nil {
		return err
	}
	if err := a.Images(dir.Images()); err != nil {
		return err
	}
	return a.Changes(func(r io.Reader) error {
		return c.engine.opts.Images.ImportRootfs(ctx, c.engine.rootfsDir(c.rec.ID), r, a.Removed)
	})
}

// matches compares what a restored container will be given with what it was.
func (c *container) matches(s *specs.Spec) error {
	if c.rec.From == "" {
		return nil
	}
	a, err := checkpoint.Open(c.rec.From)
	if err != nil {
		return err
	}
	if err := a.Match(s); err != nil {
		return err
	}
	return checkpoint.MatchProcesses(c.engine.checkpointDir(c.rec.ID).Images(), s)
}

// restoreRequest tells the supervisor what a restored container goes on from;
// nil means that it begins.
func (c *container) restoreRequest() (*shim.Restore, error) {
	if c.rec.From == "" {
		return nil, nil //nolint:nilnil // none is asked for
	}
	s, err := c.readSpec()
	if err != nil {
		return nil, err
	}
	r := &shim.Restore{Images: c.engine.checkpointDir(c.rec.ID).Images(), LSMMountContext: s.Linux.MountLabel}
	if label := s.Process.SelinuxLabel; label != "" {
		r.LSMProfile = "selinux:" + label
	}
	return r, nil
}

// verifyRestored kills a container that was just restored if one of its processes has more rights than
// the request grants: MatchProcesses knows CRIU's images, not what CRIU made of them.
func (c *container) verifyRestored(ctx context.Context) error {
	s, err := c.readSpec()
	if err != nil {
		return err
	}
	pids, err := c.engine.opts.Cgroups.Procs(c.rec.CgroupPath, true)
	if err == nil {
		err = checkpoint.VerifyProcesses(ctx, pids, s)
	}
	if err != nil {
		err = fmt.Errorf("verify rights of the restored processes: %w", err)
		return errors.Join(err, c.engine.opts.Cgroups.KillAll(ctx, c.rec.CgroupPath))
	}
	return nil
}

// restored completes a restored container once it runs: CRIU gives processes the
// score that they had, and the images are not needed any more.
func (c *container) restored() {
	if c.rec.From == "" {
		return
	}
	s, err := c.readSpec()
	if err == nil && s.Process.OOMScoreAdj != nil {
		err = c.setOOMScore(*s.Process.OOMScoreAdj)
	}
	// What cannot be removed now goes with the container.
	if err := errors.Join(err, os.RemoveAll(string(c.engine.checkpointDir(c.rec.ID)))); err != nil {
		c.log.Warn("complete a restored container", "error", err)
	}
}

// probeUnpacked looks whether a container that was not started yet can still be.
func (c *container) probeUnpacked() error {
	if !c.rec.StartedAt.IsZero() {
		return nil
	}
	_, err := os.Stat(filepath.Clean(c.engine.checkpointDir(c.rec.ID).Images()))
	return err
}
