package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-runtime/berth/test/harness"
)

// TestKillDuringTrials kills the daemon at many instants of its start, while it tries its handlers. The next one removes
// what is left of that: directories, mounts, cgroups, sockets, and processes, which the leak check counts.
func TestKillDuringTrials(t *testing.T) {
	before := staleSockets(t)
	n := harness.Start(t, harness.Options{Handler: "runc", Configure: allHandlers})
	dir := filepath.Join(n.Config.State, "trials")
	names := map[string]bool{}
	begun := time.Now()
	n.KillDaemon()
	tried(t, n)
	whole := time.Since(begun)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	const rounds = 40
	for round := range rounds {
		ctx, cancel := context.WithTimeout(n.Context(), whole*time.Duration(round)/rounds) // the point of the test: many instants
		err := n.StartDaemon(ctx)                                                          // it is killed when it does not answer in time
		intime := ctx.Err() == nil
		cancel()
		if err == nil {
			err = n.Kill()
		}
		if err != nil && intime {
			t.Fatal(err)
		}
		for _, name := range entries(t, dir) {
			names[name] = true
		}
	}
	t.Logf("%d probes were cut off", len(names))
	if len(names) == 0 {
		t.Error("no probe was cut off: the test is not at the right time")
	}
	if err := n.StartDaemon(n.Context()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(n.Log(), "files of a handler probe could not be removed") {
		t.Error("the log says that something was left")
	}
	tried(t, n)
	n.Eventually("nothing of a probe is left", func() error {
		if left := entries(t, dir); len(left) > 0 {
			return fmt.Errorf("there are directories %v", left)
		}
		for name := range names {
			for _, pattern := range []string{"/sys/fs/cgroup/*/" + name, "/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/system.slice/*" + name + "*"} {
				if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
					return fmt.Errorf("there are cgroups %v, %w", left, err)
				}
			}
		}
		return nil
	})
	for _, socket := range staleSockets(t) {
		if !slices.Contains(before, socket) {
			t.Errorf("a shim has left its socket %s", socket)
		}
	}
}

// entries are the names in a directory.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// staleSockets are those of shims that have ended.
func staleSockets(t *testing.T) []string {
	t.Helper()
	const dir = "/run/containerd/s"
	return slices.DeleteFunc(entries(t, dir), func(name string) bool {
		conn, err := net.Dial("unix", filepath.Join(dir, name))
		if err == nil {
			err = conn.Close()
		}
		return !errors.Is(err, syscall.ECONNREFUSED)
	})
}
