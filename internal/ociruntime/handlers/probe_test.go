package handlers

import (
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/internal/ociruntime"
)

// TestProbeLeavesNothing tries a handler of each kind.
func TestProbeLeavesNothing(t *testing.T) {
	for _, h := range []ociruntime.Handler{
		{Name: "runc", Type: ociruntime.TypeOCI, Path: "runc"},
		{Name: "runsc", Type: ociruntime.TypeOCI, Path: "runsc", Options: map[string]string{"platform": "ptrace", "network": "host"}},
		{Name: "shim", Type: ociruntime.TypeShimV2, Path: "io.containerd.runc.v2"},
		{Name: "shim-crun", Type: ociruntime.TypeShimV2, Path: "io.containerd.runc.v2", Options: map[string]string{"binary_name": "crun"}},
	} {
		t.Run(h.Name, func(t *testing.T) {
			before, err := filepath.Glob("/sys/fs/cgroup/*/berth-probe-*")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Probe(t.Context(), h); err != nil {
				t.Fatal(err)
			}
			after, err := filepath.Glob("/sys/fs/cgroup/*/berth-probe-*")
			if err != nil || len(after) > len(before) {
				t.Errorf("left behind: %v, %v", after, err)
			}
		})
	}
}
