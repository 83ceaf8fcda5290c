package integration

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

// script writes an OCI runtime of the test's own.
func script(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestBadRuntime: a handler whose OCI runtime is missing or does not work here is refused by name, and the others serve.
func TestBadRuntime(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "runc", Configure: func(c *config.Config) {
		failing := filepath.Join(c.Root, "../failing")
		script(t, failing, `case "$*" in *run*) echo "no luck today" >&2; exit 1;; esac; exec runc "$@"`)
		c.Runtime.Handlers["missing"] = config.Handler{Type: config.HandlerOCI, Path: "/no/such/runtime"}
		c.Runtime.Handlers["failing"] = config.Handler{Type: config.HandlerOCI, Path: failing}
	}})
	for _, handler := range []string{"missing", "failing"} {
		t.Run(handler, func(t *testing.T) {
			_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig(), RuntimeHandler: handler})
			wantError(t, err, codes.FailedPrecondition, handler)
		})
	}
	n.RunPod().Start([]string{"true"}).Exited()
}

// TestRuntimeBreaks: an OCI runtime that worked when the daemon started fails or hangs later. The caller gets an error in its
// time, and the pod can be removed without a trace.
func TestRuntimeBreaks(t *testing.T) {
	var trigger string
	n := harness.Start(t, harness.Options{Handler: "moody", Configure: func(c *config.Config) {
		moody := filepath.Join(c.Root, "../moody")
		trigger = filepath.Join(c.Root, "../trigger")
		script(t, moody, `case "$*" in *" run "*) [ -e `+trigger+` ] && . `+trigger+`;; esac; exec runc "$@"`)
		c.Runtime.Handlers["moody"] = config.Handler{Type: config.HandlerOCI, Path: moody}
	}})
	n.Pull()
	for _, c := range []struct{ name, mood, words string }{
		{"fails", `echo "no luck today" >&2; exit 1`, "no luck today"},
		{"dies", `kill -9 $$`, ""},
		{"hangs", `sleep 1000`, ""},
		{"hangs-with-child", `sleep 1000 & sleep 1001`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := n.RunPod()
			container, err := p.Create(n.ContainerConfig([]string{"sleep", "1000"}))
			if err != nil {
				t.Fatal(err)
			}
			script(t, trigger, c.mood)
			ctx, cancel := context.WithTimeout(n.Context(), 5*time.Second)
			defer cancel()
			_, err = n.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: container.ID})
			if err := mentions(err, c.words); err != nil {
				t.Error(err)
			}
			if err := os.Remove(trigger); err != nil {
				t.Fatal(err)
			}
			p.Stop()
			p.Remove()
			n.RunPod().Start([]string{"true"}).Exited()
		})
	}
}

// TestProgramIsMissing: a command that is not in the image is an error of Start, and the container says so in its status.
func TestProgramIsMissing(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		n.Pull()
		c, err := p.Create(n.ContainerConfig([]string{"/no/such/program"}))
		if err != nil {
			t.Fatal(err)
		}
		if err := mentions(c.Start(), "/no/such/program"); err != nil {
			t.Error(err)
		}
		s := c.Status()
		equal(t, "state", s.GetState(), runtimeapi.ContainerState_CONTAINER_EXITED)
		equal(t, "exit code", s.GetExitCode(), 128)
		equal(t, "reason", s.GetReason(), "StartError")
		if s.GetMessage() == "" {
			t.Error("status has no message, want the runtime's error")
		}
	})
}
