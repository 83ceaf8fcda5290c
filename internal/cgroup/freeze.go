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

// Files of the freezers of v2 and v1.
const (
	freezeFile       = "cgroup.freeze"
	legacyFreezeFile = "freezer.state"
	// legacyFreezingFile tells what the cgroup itself was ordered, whatever those above were.
	legacyFreezingFile = "freezer.self_freezing"
)

// frozenLegacy is the value written to a v1 freezer, and the value that it shows when it is done.
const frozenLegacy = "FROZEN"

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
	err := h.setFrozen(path, true)
	if err == nil {
		err = h.awaitFrozen(ctx, dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("freeze cgroup %s: %w", path, err), h.Thaw(path))
	}
	return nil
}

// Thaw lets the processes of the cgroup run, whether or not they were frozen.
// A cgroup that does not exist has none.
func (h *Host) Thaw(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	if err := h.setFrozen(path, false); err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", path, err)
	}
	return nil
}

// Frozen tells whether the cgroup itself, not one above, was ordered to freeze. One that does not
// exist is an errdefs.ErrNotFound.
func (h *Host) Frozen(path string) (bool, error) {
	if err := checkPath(path); err != nil {
		return false, err
	}
	dir, ok := h.Dir("freezer", path)
	if !ok {
		return false, fmt.Errorf("freezer of cgroup %s: this host has none: %w", path, errdefs.ErrFailedPrecondition)
	}
	file := legacyFreezingFile
	if h.Mode == V2 {
		file = freezeFile
	}
	value, err := readString(filepath.Join(dir, file))
	if gone(err) {
		return false, fmt.Errorf("freezer of cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return false, fmt.Errorf("freezer of cgroup %s: %w", path, err)
	}
	return value == "1", nil
}

// setFrozen tells the freezer what to do and does not wait for it. Without a
// freezer, and for a cgroup that does not exist, there is nothing to do.
func (h *Host) setFrozen(path string, frozen bool) error {
	dir, ok := h.Dir("freezer", path)
	if !ok {
		return nil
	}
	file, value := legacyFreezeFile, "THAWED"
	switch {
	case h.Mode == V2 && frozen:
		file, value = freezeFile, "1"
	case h.Mode == V2:
		file, value = freezeFile, "0"
	case frozen:
		value = frozenLegacy
	}
	if err := writeString(filepath.Join(dir, file), value); err != nil && !gone(err) {
		return err
	}
	return nil
}

// awaitFrozen waits until no process of the cgroup runs any more.
func (h *Host) awaitFrozen(ctx context.Context, dir string) error {
	if h.Mode != V2 {
		return awaitFrozenLegacy(ctx, filepath.Join(dir, legacyFreezeFile))
	}
	return awaitEvent(ctx, dir, "frozen 1")
}

// awaitFrozenLegacy repeats the order: a process that forks or traces meanwhile
// can keep a v1 freezer from finishing.
func awaitFrozenLegacy(ctx context.Context, file string) error {
	for {
		state, err := readString(file)
		if err != nil || state == frozenLegacy {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(legacyFreezePause):
		}
		if err := writeString(file, frozenLegacy); err != nil {
			return err
		}
	}
}
