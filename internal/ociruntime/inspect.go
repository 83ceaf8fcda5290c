package ociruntime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime/staticelf"
)

// removeStep is how often a cgroup that is still in use is tried to be removed.
const removeStep = 10 * time.Millisecond

// Inspect asks a runtime what it supports, without running a container.
func Inspect(ctx context.Context, h Handler) (Features, error) {
	scratch, err := os.MkdirTemp("", "berth-probe-")
	if err != nil {
		return Features{}, err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	h.Root = filepath.Join(scratch, "root")
	r, err := New(h, Local{})
	if err != nil {
		return Features{}, err
	}
	return r.features(ctx, scratch)
}

// WriteTrial makes a bundle whose only program is built in and exits with 0.
func WriteTrial(bundle string, spec *specs.Spec) error {
	program, err := staticelf.Exit()
	if err != nil {
		return err
	}
	rootfs := filepath.Join(bundle, "rootfs")
	for _, dir := range []string{"proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			return err
		}
	}
	//nolint:gosec // it is a program
	if err := os.WriteFile(filepath.Join(rootfs, "exit"), program, 0o755); err != nil {
		return err
	}
	config, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600)
}

// removeCgroup removes the cgroup of a trial whose runtime does not: runsc leaves it when it runs in the foreground.
func removeCgroup(id string) error {
	const root = "/sys/fs/cgroup"
	dirs, err := filepath.Glob(filepath.Join(root, "*", id))
	if err != nil {
		return fmt.Errorf("find cgroup: %w", err)
	}
	for _, dir := range append(dirs, filepath.Join(root, id)) {
		err := os.Remove(dir)
		for end := time.Now().Add(cleanupTimeout); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = os.Remove(dir) {
			time.Sleep(removeStep) // its last process is about to end
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}
