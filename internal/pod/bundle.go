package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/atomicfile"
	"github.com/berth-runtime/berth/internal/nri"
	"github.com/berth-runtime/berth/internal/spec"
)

// limits are the limits of a container: those that the CRI has a field for,
// and more that only plugins can want; nil is none.
type limits struct {
	cri  *runtimeapi.LinuxContainerResources
	more *api.LinuxResources
}

// limitsOf are limits as a plugin wants them.
func limitsOf(wanted *api.LinuxResources) (limits, error) {
	asked, more, err := nri.Split(wanted)
	return limits{asked, more}, err
}

// merge returns l with every value of update that is set.
func (l limits) merge(update limits) limits {
	return limits{cri: spec.MergeResources(l.cri, update.cri), more: nri.Merge(l.more, update.more)}
}

// revert returns what puts l back after a part of update may be in force.
func (l limits) revert(update limits) limits {
	return limits{cri: spec.RevertResources(l.cri, update.cri), more: l.more}
}

// put writes the limits into a spec. Devices are no limits and stay.
func (l limits) put(s *specs.Spec, host spec.Host) error {
	oci, err := spec.Resources(l.cri, host, nil)
	if err != nil {
		return err
	}
	nri.Apply(oci, l.more)
	if old := s.Linux.Resources; old != nil {
		oci.Devices = old.Devices
	}
	s.Linux.Resources = oci
	if score := int(l.cri.GetOomScoreAdj()); score != 0 || s.Process.OOMScoreAdj != nil {
		score = max(score, host.MinOOMScoreAdj)
		s.Process.OOMScoreAdj = &score
	}
	return nil
}

// dropUnbounded removes from limits that there shall be none on tasks, which crun
// 1.8 writes as -1 where the kernel wants "max", and tells whether it did. A new
// cgroup has no such limit; where one may be, the caller has to lift it.
func dropUnbounded(oci *specs.LinuxResources) bool {
	if oci == nil || oci.Pids == nil || oci.Pids.Limit == nil || *oci.Pids.Limit >= 0 {
		return false
	}
	oci.Pids = nil
	return true
}

// limits are those in force.
func (c *container) limits() limits {
	c.mu.Lock()
	defer c.mu.Unlock()
	return limits{cri: c.rec.Resources.M, more: c.rec.Limits.M}
}

func (c *container) setLimits(l limits) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Resources.M, c.rec.Limits.M = l.cri, l.more
	c.changed()
}

// readSpec reads what the OCI runtime is given.
func (c *container) readSpec() (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(c.engine.bundleDir(c.rec.ID), "config.json"))
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("read the spec of the container: %w", err)
	}
	return s, nil
}

// writeSpec writes what the OCI runtime is given of a container or a sandbox
// container, with the process section once more, by itself: it is what commands
// in the container begin with.
func (e *Engine) writeSpec(id string, s *specs.Spec) error {
	dropUnbounded(s.Linux.Resources)
	dir := e.bundleDir(id)
	for name, value := range map[string]any{"config.json": s, "process.json": s.Process} {
		data, err := json.Marshal(value)
		if err != nil {
			return err
		}
		// A start may read it while an update replaces it.
		if err := atomicfile.Write(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// removeRootfs unmounts a root file system and removes the directories for it and
// for the bundle. Preconditions: nothing else is in the bundle any more.
func (e *Engine) removeRootfs(ctx context.Context, id string) error {
	if err := e.opts.Images.UnmountRootfs(ctx, e.rootfsDir(id)); err != nil {
		return err
	}
	return removeEmpty(e.rootfsDir(id), e.bundleDir(id))
}

// removeSpec removes what writeSpec wrote, and what a part of it left.
func (e *Engine) removeSpec(id string) error {
	var files []string
	for _, name := range []string{"config.json", "config.json.tmp", "process.json", "process.json.tmp", passwdName} {
		files = append(files, filepath.Join(e.bundleDir(id), name))
	}
	return removeEmpty(files...)
}
