package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

// legacyFreezePause is the time between two looks at a v1 freezer, which does
// not tell when it is done.
const legacyFreezePause = 5 * time.Millisecond

// Freeze stops every process of the cgroup. Nil means that none of them runs
// until Thaw; after an error all of them run. A cgroup that does not exist is
// an errdefs.ErrNotFound.
func (h *Host) Freeze(ctx context.Context, path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	dir, ok := h.Dir("freezer", path)
	if !ok {
		return fmt.Errorf("freeze cgroup %s: this host has no cgroup freezer: %w", path, errdefs.ErrFailedPrecondition)
	}
	if _, err := os.Stat(dir); gone(err) {
		return fmt.Errorf("freeze cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	thaw, err := h.freeze(path)
	if err == nil {
		err = h.awaitFrozen(ctx, dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("freeze cgroup %s: %w", path, err), thaw())
	}
	return nil
}

// Thaw lets the processes of the cgroup run, whether or not they were frozen.
// A cgroup that does not exist has none.
func (h *Host) Thaw(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	dir, ok := h.Dir("freezer", path)
	if !ok {
		return nil
	}
	file, thawed := "freezer.state", "THAWED"
	if h.Mode == V2 {
		file, thawed = "cgroup.freeze", "0"
	}
	if err := writeString(filepath.Join(dir, file), thawed); err != nil && !gone(err) {
		return fmt.Errorf("thaw cgroup %s: %w", path, err)
	}
	return nil
}

// awaitFrozen waits until no process of the cgroup runs any more.
func (h *Host) awaitFrozen(ctx context.Context, dir string) error {
	if h.Mode != V2 {
		return awaitFrozenLegacy(ctx, filepath.Join(dir, "freezer.state"))
	}
	return awaitEvent(ctx, dir, "frozen 1")
}

// awaitFrozenLegacy repeats the order: a process that forks or traces meanwhile
// can keep a v1 freezer from finishing.
func awaitFrozenLegacy(ctx context.Context, file string) error {
	for {
		state, err := readString(file)
		if err != nil || state == "FROZEN" {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(legacyFreezePause):
		}
		if err := writeString(file, "FROZEN"); err != nil {
			return err
		}
	}
}
