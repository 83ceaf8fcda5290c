package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/pod/machine"
	"github.com/berth-runtime/berth/internal/pod/store"
	"github.com/berth-runtime/berth/internal/selinux"
	"github.com/berth-runtime/berth/internal/shim"
)

// recoverReaders bounds how many records are read at a time.
const recoverReaders = 8

// recover lists every object that earlier engines wrote down, then has each
// take up its work. A record that cannot be read is set aside: its object is
// shown as not ready or unknown and goes by normal removal. It never keeps the
// engine from opening and never affects another pod. A record of a newer version
// keeps the engine from opening: nothing is changed, for that version to go on.
func (e *Engine) recover(ctx context.Context) error {
	known, err := e.opts.Shim.List(ctx)
	if err != nil {
		return fmt.Errorf("ask the supervisor for its containers: %w", err)
	}
	e.supervised = make(map[string]shim.Container, len(known))
	for _, c := range known {
		e.supervised[c.ID] = c
	}
	ids, err := e.store.SandboxIDs()
	if err != nil {
		return fmt.Errorf("list the records of sandboxes: %w", err)
	}
	var group errgroup.Group
	group.SetLimit(recoverReaders)
	var mu sync.Mutex
	var intact []*object
	for _, id := range ids {
		group.Go(func() error {
			objects, err := e.recoverSandbox(id)
			mu.Lock()
			defer mu.Unlock()
			intact = append(intact, objects...)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := e.closeBundles(); err != nil {
		return err
	}
	orphans, err := e.findOrphans(ctx)
	if err != nil {
		return err
	}
	if orphans.sandboxes, err = e.undoIntents(); err != nil {
		return err
	}
	e.opts.Plugins.Start(ctx, e)
	for _, o := range intact {
		o.takeUp()
	}
	e.drivers.start(func(ctx context.Context) { e.removeOrphans(ctx, orphans) })
	return nil
}

// recoverSandbox lists a sandbox and its containers again and returns those
// whose records are intact. An error wraps [store.ErrNewer].
func (e *Engine) recoverSandbox(id string) ([]*object, error) {
	var rec sandboxRecord
	var state machine.State
	err := e.store.Read(e.store.SandboxFile(id), &rec)
	if err == nil {
		state, err = sandboxSteps.Load(rec.Machine)
	}
	if err == nil && rec.ID != id {
		err = fmt.Errorf("%w: it is of sandbox %q", store.ErrDamaged, rec.ID)
	}
	if errors.Is(err, store.ErrNewer) {
		return nil, newerRecord(e.store.SandboxFile(id), err)
	}
	var intact []*object
	if err != nil {
		rec, state = e.damagedSandbox(id, err)
	}
	s := e.adoptSandbox(rec, state)
	s.skipTold()
	if err := selinux.Reserve(rec.Labels); err != nil {
		s.log.Error("reserve the SELinux level of the pod", "error", err)
	}
	s.claimed, s.stopping = true, err != nil
	s.logged.Append(rec.Warnings...)
	s.known = rec.Listed || sandboxSteps.Present(s.state, pluginsStep)
	e.mu.Lock()
	e.sandboxes.add(s)
	e.names[sandboxName(rec.Config.M.GetMetadata())] = s
	e.mu.Unlock()
	if err == nil {
		intact = append(intact, &s.object)
	}
	ids, listErr := e.store.ContainerIDs(id)
	if listErr != nil {
		s.log.Error("list the records of the sandbox's containers", "error", listErr)
	}
	for _, cid := range ids {
		c, ok, err := e.recoverContainer(s, cid)
		if err != nil {
			return nil, err
		}
		if ok {
			intact = append(intact, &c.object)
		}
	}
	s.mu.Lock()
	s.changed()
	s.mu.Unlock()
	return intact, nil
}

func newerRecord(file string, err error) error {
	return fmt.Errorf("read record %s: %w; install the version that was here before: %w", file, err, errdefs.ErrFailedPrecondition)
}

// damagedSandbox sets a record aside and makes up one by which everything that
// may be there of the sandbox can be found and removed.
func (e *Engine) damagedSandbox(id string, why error) (sandboxRecord, machine.State) {
	file := e.store.SandboxFile(id)
	e.opts.Log.Error("record of a sandbox is unreadable; it is shown as not ready until it is removed",
		"sandbox", id, "file", file, "error", why)
	if err := e.store.Quarantine(file); err != nil {
		e.opts.Log.Error("set unreadable record aside", "file", file, "error", err)
	}
	rec := sandboxRecord{ID: id, Listed: true, Problem: fmt.Sprintf("its record cannot be read: %v", why)}
	rec.Config.M = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "unreadable-" + id[:shortID], Uid: id}}
	parent, err := cgroup.ParentPath(e.opts.CgroupDriver, e.ownParent(id))
	if err != nil {
		e.opts.Log.Error("place the cgroup of an unreadable sandbox", "sandbox", id, "error", err)
	}
	rec.CgroupParent, rec.OwnsParent = parent, err == nil
	if info, err := os.Stat(e.store.SandboxDir(id)); err == nil {
		rec.CreatedAt = info.ModTime()
	}
	if paths, ok := namespace.Probe(e.namespaceDir(id)); ok {
		rec.Namespaces = paths
	}
	rec.NetNS = e.netPin(id)
	return rec, sandboxSteps.Whole()
}

// recoverContainer lists a container again; intact tells whether its record is. An error wraps [store.ErrNewer].
func (e *Engine) recoverContainer(s *sandbox, id string) (_ *container, intact bool, _ error) {
	var rec containerRecord
	var state machine.State
	file := e.store.ContainerFile(s.rec.ID, id)
	err := e.store.Read(file, &rec)
	if err == nil {
		state, err = containerSteps.Load(rec.Machine)
	}
	if err == nil && (rec.ID != id || rec.SandboxID != s.rec.ID) {
		err = fmt.Errorf("%w: it is of container %q in sandbox %q", store.ErrDamaged, rec.ID, rec.SandboxID)
	}
	if errors.Is(err, store.ErrNewer) {
		return nil, false, newerRecord(file, err)
	}
	if err != nil {
		rec, state = e.damagedContainer(s, id, err)
	}
	c := e.adoptContainer(s, rec, state)
	if err := selinux.Reserve(rec.Labels); err != nil {
		c.log.Error("reserve SELinux level", "error", err)
	}
	s.logged.Append(rec.Warnings...)
	c.claimed, c.known = true, containerSteps.Present(c.state, containerPluginsStep)
	if containerSteps.Present(state, volumesStep) {
		c.claimVolumes()
	}
	e.mu.Lock()
	e.containers.add(c)
	e.names[containerName(s.rec.ID, rec.Config.M.GetMetadata())] = c
	s.containers[id] = c
	e.mu.Unlock()
	c.mu.Lock()
	c.changed()
	c.mu.Unlock()
	return c, err == nil, nil
}

// damagedContainer is for containers what damagedSandbox is for sandboxes. Its
// process, if there is one, runs on until a request stops or removes it.
func (e *Engine) damagedContainer(s *sandbox, id string, why error) (containerRecord, machine.State) {
	file := e.store.ContainerFile(s.rec.ID, id)
	s.log.Error("record of a container is unreadable; its state is shown as unknown until it is removed",
		"container_id", id, "file", file, "error", why)
	if err := e.store.Quarantine(file); err != nil {
		s.log.Error("set unreadable record aside", "file", file, "error", err)
	}
	rec := containerRecord{ID: id, SandboxID: s.rec.ID, Listed: true, Problem: fmt.Sprintf("its record cannot be read: %v", why)}
	rec.Config.M = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "unreadable-" + id[:shortID]}}
	rec.CgroupPath = filepath.Join(s.rec.CgroupParent, id)
	rec.CreatedAt = s.rec.CreatedAt
	return rec, containerSteps.Whole()
}

// orphans are things on this host that no record tells of.
type orphans struct {
	bundles, namespaces, snapshots, volumes, processes []string
	// sandboxes are those of restores that were cut off.
	sandboxes []string
}

// findOrphans looks for what a lost record may have left. It runs before any
// request, so nothing that is being made is mistaken for an orphan.
func (e *Engine) findOrphans(ctx context.Context) (orphans, error) {
	var o orphans
	var err error
	if o.snapshots, err = e.opts.Images.RootfsKeys(ctx); err != nil {
		return o, fmt.Errorf("list writable layers: %w", err)
	}
	o.snapshots = e.unknown(o.snapshots)
	keys, err := e.opts.Images.VolumeKeys(ctx)
	if err != nil {
		return o, fmt.Errorf("list volumes: %w", err)
	}
	for _, key := range keys {
		sandboxID, _, _ := strings.Cut(key, ".")
		o.volumes = append(o.volumes, e.unknown([]string{sandboxID})...)
	}
	for id := range e.supervised {
		o.processes = append(o.processes, id)
	}
	o.processes = e.unknown(o.processes)
	for _, d := range []struct {
		dir string
		ids *[]string
	}{{"containers", &o.bundles}, {"ns", &o.namespaces}, {"pods", &o.namespaces}, {"volumes", &o.volumes}} {
		entries, err := os.ReadDir(filepath.Join(e.opts.State, d.dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return o, err
		}
		var ids []string
		for _, entry := range entries {
			ids = append(ids, entry.Name())
		}
		*d.ids = append(*d.ids, e.unknown(ids)...)
	}
	return o, nil
}

// unknown are the IDs of which there is no object.
func (e *Engine) unknown(ids []string) []string {
	var unknown []string
	for _, id := range ids {
		if _, ok := e.sandboxes.byID[id]; ok {
			continue
		}
		if _, ok := e.containers.byID[id]; !ok && store.ValidID(id) {
			unknown = append(unknown, id)
		}
	}
	return unknown
}

// removeOrphans removes what no record tells of, and what networks still hold
// for pods that are gone.
func (e *Engine) removeOrphans(ctx context.Context, o orphans) {
	ctx, cancel := context.WithTimeout(ctx, stepDeadline)
	defer cancel()
	try := func(what, id string, err error) {
		if err != nil && e.drivers.ctx.Err() == nil {
			e.opts.Log.Warn("remove orphan", "kind", what, "id", id, "error", err)
		}
	}
	for _, id := range o.sandboxes {
		try("sandbox", id, e.RemoveSandbox(ctx, id))
	}
	for _, id := range o.processes {
		if e.supervised[id].Running {
			try("process", id, e.opts.Shim.KillAll(ctx, id)) // exitSeen deletes it
		} else {
			try("process", id, e.opts.Shim.Delete(ctx, id))
		}
	}
	for _, id := range o.bundles {
		try("idmapped mounts", id, e.unmapMounts(ctx, id))
		try("spec", id, e.removeSpec(id))
		try("mount and bundle", id, e.removeRootfs(ctx, id))
	}
	for _, id := range o.snapshots {
		try("snapshot", id, e.opts.Images.RemoveRootfs(ctx, id))
	}
	for _, id := range o.volumes {
		try("volumes", id, e.removeVolumes(ctx, id, func(string) bool { return false }))
	}
	for _, id := range o.namespaces {
		try("namespace", id, e.removeNamespaces(ctx, id, e.netPin(id)))
		try("shm", id, unmountShm(e.shmDir(id)))
	}
	try("network", "all", e.CollectNetwork(ctx))
}

// CollectNetwork frees the addresses of pods that are gone, which a crash or a
// failing plugin may have left.
func (e *Engine) CollectNetwork(ctx context.Context) error { return e.collectNetwork(ctx, "") }

// collectNetwork frees the addresses of pods that are gone, of those that are
// stopped (their detaching may have been cut off) and of the one that goes.
func (e *Engine) collectNetwork(ctx context.Context, going string) error {
	live := map[string]bool{}
	for _, s := range e.allSandboxes() {
		s.mu.Lock()
		live[s.rec.ID] = s.rec.ID != going && sandboxSteps.Present(s.state, networkStep)
		s.mu.Unlock()
	}
	return e.opts.Network.Collect(ctx, live)
}

func (e *Engine) allSandboxes() []*sandbox {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return slices.Collect(maps.Values(e.sandboxes.byID))
}
