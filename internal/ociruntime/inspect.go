package ociruntime

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/ociruntime/staticelf"
)

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
