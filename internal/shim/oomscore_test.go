package shim_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim"
)

// TestProtectionFromTheOOMKillerIsNotInherited: a supervisor that the OOM killer spares starts nothing
// else that it spares, but for the process on which all containers of a pod depend.
func TestProtectionFromTheOOMKillerIsNotInherited(t *testing.T) {
	const own = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	// Without CAP_SYS_RESOURCE nothing can be protected, and everything keeps the score of this process.
	if err := os.WriteFile(own, []byte("-999"), 0); err != nil && !errors.Is(err, os.ErrPermission) {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(own, before, 0); err != nil {
			t.Error(err)
		}
	})
	score := func(pid int) string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	protected, err := strconv.Atoi(score(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	atLeast := func(value int) string { return itoa(max(value, protected)) }
	runtimes(t, func(t *testing.T, h *host, handler ociruntime.Handler) {
		hook := filepath.Join(h.state, "hook")
		h.must(os.WriteFile(hook, []byte("#!/bin/sh\ncat /proc/self/oom_score_adj >"+hook+".score\n"), 0o700))
		started := h.start(h.bundle(handler, "c", "sleep 1000", func(s *specs.Spec) {
			s.Process.OOMScoreAdj = new(max(0, protected))
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: hook}}}
		}))
		process := shell("sleep 1000")
		process.OOMScoreAdj = new(max(0, protected))
		e, err := h.exec("c", "e", process)
		h.must(err)
		infra, err := h.client.StartInfra(h.ctx(), shim.InfraRequest{ID: "i"})
		h.must(err)
		hooks, err := os.ReadFile(hook + ".score")
		h.must(err)
		want := map[string]string{
			"supervisor": itoa(protected), "container": atLeast(0), "exec": atLeast(0), "infra process": atLeast(-998), "hook": atLeast(0),
		}
		if handler.Type == ociruntime.TypeShimV2 {
			delete(want, "hook") // its shim sets its own score, which its hooks inherit
		}
		for what, got := range map[string]string{
			"supervisor": score(h.client.PID()), "container": score(started.PID), "exec": score(e.PID),
			"infra process": score(infra), "hook": strings.TrimSpace(string(hooks)),
		} {
			if want[what] != "" && got != want[what] {
				t.Errorf("oom_score_adj of the %s is %s, want %s", what, got, want[what])
			}
		}
		h.must(e.Kill(h.ctx()))
		_, err = e.Wait(h.ctx())
		h.must(err)
	})
}
