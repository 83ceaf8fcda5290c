package handlers

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// installed are handlers of each kind.
var installed = []ociruntime.Handler{
	{Name: "runc", Type: ociruntime.TypeOCI, Path: "runc"},
	{Name: "runsc", Type: ociruntime.TypeOCI, Path: "runsc", Options: map[string]string{"platform": "ptrace", "network": "host"}},
	{Name: "shim", Type: ociruntime.TypeShimV2, Path: "io.containerd.runc.v2"},
	{Name: "shim-crun", Type: ociruntime.TypeShimV2, Path: "io.containerd.runc.v2", Options: map[string]string{"binary_name": "crun"}},
}

// TestProbeLeavesNothing tries a handler of each kind.
func TestProbeLeavesNothing(t *testing.T) {
	privilege.Root(t)
	for _, h := range installed {
		t.Run(h.Name, func(t *testing.T) {
			leakcheck.Check(t)
			dir := leakcheck.Dir(t)
			if _, err := Probe(t.Context(), h, dir); err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// TestCloseEndsProbes: at whatever instant handlers are no longer needed, nothing of their probes is left.
func TestCloseEndsProbes(t *testing.T) {
	leakcheck.Check(t)
	for round := range 12 {
		dir := leakcheck.Dir(t)
		var configured []Info
		for _, h := range installed {
			configured = append(configured, Info{Handler: h})
		}
		s := Open(configured, Options{Trials: dir, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(round*round)*5*time.Millisecond) // the point of the test: many instants
		s.Await(ctx)
		cancel()
		s.Close()
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}
