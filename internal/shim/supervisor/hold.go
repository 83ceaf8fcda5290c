package supervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// freezeTime bounds the wait for a container to freeze.
	freezeTime = 500 * time.Millisecond
	// heldFile is in a container's directory while this process has frozen it.
	heldFile = "held"
)

// hold freezes the container's processes for a moment, if that disturbs nothing: no operation on the
// container, which may freeze it too, no start of an exec, which OCI runtimes refuse in a frozen
// container, and no freeze by another process. The caller calls thaw, also when nothing was frozen.
func (c *container) hold(ctx context.Context, cgroup string) (thaw func()) {
	thaw = func() {}
	if cgroup == "" {
		return thaw
	}
	select {
	case <-c.op:
	default:
		return thaw
	}
	if !c.starts.TryLock() {
		c.release()
		return thaw
	}
	if c.freeze(ctx, cgroup) {
		return func() {
			c.endHold(cgroup)
			c.starts.Unlock()
			c.release()
		}
	}
	c.starts.Unlock()
	c.release()
	return thaw
}

// freeze tells whether it has frozen the container. A note of that is on disk before.
func (c *container) freeze(ctx context.Context, cgroup string) bool {
	ctx, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	frozen, err := c.s.cfg.Cgroups.Frozen(cgroup)
	if frozen || err != nil {
		return false
	}
	if err := os.WriteFile(filepath.Join(c.dir, heldFile), nil, 0o600); err != nil {
		c.s.log.Warn("container not frozen", "container", c.id, "error", err)
		return false
	}
	err = c.s.cfg.Cgroups.Freeze(ctx, cgroup)
	if err == nil {
		return true
	}
	if !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		c.s.log.Warn("container not frozen", "container", c.id, "error", err)
	}
	c.endHold(cgroup)
	return false
}

// endHold thaws what freeze has frozen, also a predecessor's.
func (c *container) endHold(cgroup string) {
	held := filepath.Join(c.dir, heldFile)
	if !exists(held) {
		return
	}
	if err := errors.Join(c.s.cfg.Cgroups.Thaw(cgroup), remove(held)); err != nil {
		c.s.log.Error("container not thawed", "container", c.id, "error", err)
	}
}
