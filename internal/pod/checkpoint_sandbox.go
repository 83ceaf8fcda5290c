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

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/checkpoint"
	"github.com/berth-runtime/berth/internal/pod/store"
	"github.com/berth-runtime/berth/internal/version"
)

// CheckpointSandbox writes the containers of a pod down, which must be exactly
// those that run, into a directory that must be empty. They stand still together
// meanwhile and then go on, whatever the outcome. After an error the directory
// is empty again.
func (e *Engine) CheckpointSandbox(ctx context.Context, id, output string, containerIDs []string, options map[string]string) error {
	s, err := e.findSandbox(id)
	if err != nil {
		return fmt.Errorf("checkpoint pod: %w", err)
	}
	if err := s.checkpoint(ctx, output, containerIDs, options); err != nil {
		return fmt.Errorf("checkpoint %s: %w", s, err)
	}
	return nil
}

func (s *sandbox) checkpoint(ctx context.Context, output string, containerIDs []string, options map[string]string) error {
	if err := refuseOptions(options); err != nil {
		return err
	}
	if err := checkDirectory("output_path", output); err != nil {
		return err
	}
	if entries, err := os.ReadDir(output); err != nil || len(entries) > 0 {
		return errors.Join(fmt.Errorf("output_path %q: must be empty: %w", output, errdefs.ErrInvalidArgument), err)
	}
	containers, err := s.selected(containerIDs)
	if err != nil {
		return err
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, checkpointDeadline)
		defer cancel()
	}
	e := s.engine
	d := &dump{engine: e, note: string(e.checkpointDir(store.NewID())) + noteExt}
	names := map[string]string{}
	var ids []string
	for _, c := range containers {
		d.parts = append(d.parts, part{c, checkpoint.Dir(filepath.Join(output, c.rec.ID))})
		names[c.rec.Config.M.GetMetadata().GetName()] = c.rec.ID
		ids = append(ids, c.rec.ID)
	}
	if len(names) != len(ids) {
		return fmt.Errorf("container_ids: two of the containers have the same name: %w", errdefs.ErrFailedPrecondition)
	}
	d.intent.Files = checkpoint.PodFiles(output, ids)
	return d.make(ctx, func(ctx context.Context) error { return s.pack(ctx, d, output, names) })
}

// pack makes the archives of what was captured, and completes the checkpoint.
func (s *sandbox) pack(ctx context.Context, d *dump, output string, names map[string]string) error {
	for _, p := range d.parts {
		if err := p.dir.Pack(ctx, checkpoint.ArchiveOf(output, p.c.rec.ID)); err != nil {
			return err
		}
		if err := os.RemoveAll(string(p.dir)); err != nil {
			return err
		}
	}
	m := s.rec.Config.M.GetMetadata()
	err := checkpoint.WritePod(output, checkpoint.Pod{
		ID: s.rec.ID, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
		Containers: names, Runtime: s.rec.Handler, Version: version.Version,
	})
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	d.intent.Files = nil // it is complete: nothing of it is to be removed
	return nil
}

// selected are the containers of the IDs, if they are exactly those that run.
func (s *sandbox) selected(ids []string) ([]*container, error) {
	if v := s.view.Load(); v == nil || v.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, fmt.Errorf("it is not ready: %w", errdefs.ErrFailedPrecondition)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("container_ids: must name the running containers: %w", errdefs.ErrInvalidArgument)
	}
	chosen := map[*container]bool{}
	for _, id := range ids {
		c, err := s.engine.findContainer(id)
		if err != nil {
			return nil, fmt.Errorf("container_ids: %w", err)
		}
		if c.sandbox != s {
			return nil, fmt.Errorf("container_ids: %s is not in this pod: %w", c, errdefs.ErrInvalidArgument)
		}
		if chosen[c] {
			return nil, fmt.Errorf("container_ids: %s is named twice: %w", c, errdefs.ErrInvalidArgument)
		}
		chosen[c] = true
	}
	for _, c := range s.members() {
		c.mu.Lock()
		state := c.stateLocked()
		c.mu.Unlock()
		running := state == runtimeapi.ContainerState_CONTAINER_RUNNING
		switch {
		case chosen[c] && !running:
			return nil, fmt.Errorf("container_ids: %s is %s: %w", c, stateName(state), errdefs.ErrFailedPrecondition)
		case !chosen[c] && running:
			return nil, fmt.Errorf("container_ids: %s runs and is not named: %w", c, errdefs.ErrFailedPrecondition)
		}
	}
	return slices.SortedFunc(maps.Keys(chosen), func(a, b *container) int { return a.rec.CreatedAt.Compare(b.rec.CreatedAt) }), nil
}

// refuseOptions refuses every option: there are none.
func refuseOptions(options map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		return fmt.Errorf("options[%q]: is not known: %w", key, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkDirectory refuses what is no directory of this host.
func checkDirectory(field, dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return fmt.Errorf("%s %q: must be an absolute path without detours: %w", field, dir, errdefs.ErrInvalidArgument)
	}
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return fmt.Errorf("%s %q: is no directory: %w", field, dir, errdefs.ErrInvalidArgument)
	}
	return nil
}

// importShm puts back what was in the shared memory of the pod.
func (s *sandbox) importShm(ctx context.Context, archives map[string]*checkpoint.Archive) error {
	dir := s.engine.shmDir(s.rec.ID)
	if !isShm(dir) {
		return nil
	}
	for _, a := range archives { // all of them have the same
		return a.Shm(func(r io.Reader) error { return checkpoint.ImportTree(ctx, dir, r) })
	}
	return nil
}
