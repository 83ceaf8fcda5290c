package pod

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/cgroup/systemd"
)

// shortID is the length of the IDs that people read.
const shortID = 13

// placeCgroup decides where the cgroups of the pod's containers are. Kubelet
// makes the parent before it asks for the pod; for others we make it, and
// remove it when the pod goes.
func (e *Engine) placeCgroup(rec *sandboxRecord) error {
	parent := rec.Config.M.GetLinux().GetCgroupParent()
	if parent == "" {
		parent = e.ownParent(rec.ID)
	}
	path, err := cgroup.ParentPath(e.opts.CgroupDriver, parent)
	if err != nil {
		return fmt.Errorf("linux.cgroup_parent: %w", err)
	}
	rec.CgroupParent = path
	rec.OwnsParent = !e.opts.Cgroups.Exists(path)
	return nil
}

// ownParent is the cgroup parent of a pod that names none.
func (e *Engine) ownParent(id string) string {
	if e.opts.CgroupDriver == cgroup.Systemd {
		return strings.TrimPrefix(e.baseCgroup(), "/") + "-" + id[:shortID] + ".slice"
	}
	return filepath.Join(e.baseCgroup(), id)
}

// baseCgroup is the parent of pods that name none.
func (e *Engine) baseCgroup() string {
	if e.opts.Instance == "" {
		return "/berth"
	}
	return "/berth-" + e.opts.Instance
}

// makeCgroup makes the pod's cgroup unless it is there. Where systemd keeps the
// tree it has to be asked: it forgets what others made, and takes away from it
// the controllers that it does not know to be in use.
func (s *sandbox) makeCgroup(ctx context.Context) error {
	path := s.rec.CgroupParent
	if s.engine.opts.CgroupDriver == cgroup.Cgroupfs {
		return s.engine.opts.Cgroups.Create(path)
	}
	if s.engine.opts.Cgroups.Exists(path) {
		return nil
	}
	return systemd.Start(ctx, filepath.Base(path))
}

// probeCgroup looks whether the pod's cgroup is there. A reboot takes it; it is made again for a pod
// that needs nothing else of which that is true.
func (s *sandbox) probeCgroup() error {
	there := s.engine.opts.Cgroups.Exists // systemd removes and adds controllers by itself
	if s.engine.opts.CgroupDriver == cgroup.Cgroupfs {
		there = s.engine.opts.Cgroups.Complete
	}
	if !there(s.rec.CgroupParent) {
		return errors.New("the cgroup is gone, as after a reboot of the node")
	}
	return nil
}

// removeCgroup removes the pod's cgroup if it was not there before the pod.
// Another pod may have come to share it: then the last one removes it.
func (s *sandbox) removeCgroup(ctx context.Context) error {
	if !s.rec.OwnsParent {
		return nil
	}
	err := s.engine.removeSlice(ctx, s.rec.CgroupParent)
	if errdefs.IsFailedPrecondition(err) && s.rec.Config.M.GetLinux().GetCgroupParent() != "" {
		return nil
	}
	return err
}

// removeSlice removes a cgroup that is not a container's, with what is empty in
// it. One in which something runs is left alone, with an error.
func (e *Engine) removeSlice(ctx context.Context, path string) error {
	if e.opts.CgroupDriver == cgroup.Cgroupfs {
		return e.opts.Cgroups.Remove(path)
	}
	pids, err := e.opts.Cgroups.Procs(path, true)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(pids) > 0 { // systemd would end them
		return fmt.Errorf("stop slice %s: still has processes %v: %w", path, pids, errdefs.ErrFailedPrecondition)
	}
	return systemd.Stop(ctx, filepath.Base(path))
}

// removeBase removes the parent of the pods that named none.
func (e *Engine) removeBase(ctx context.Context) error {
	path := e.baseCgroup()
	if e.opts.CgroupDriver == cgroup.Systemd {
		var err error
		if path, err = cgroup.ParentPath(cgroup.Systemd, strings.TrimPrefix(path, "/")+".slice"); err != nil {
			return err
		}
	}
	return e.removeSlice(ctx, path)
}
