package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestHandshake: what kubelet asks for when it connects.
func TestHandshake(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	v, err := n.Runtime.Version(n.Context(), &runtimeapi.VersionRequest{})
	if err != nil || v.GetVersion() == "" || v.GetRuntimeName() == "" || v.GetRuntimeVersion() == "" || v.GetRuntimeApiVersion() != "v1" {
		t.Errorf("version is %v, %v, want all four fields", v, err)
	}
	n.Ready()
	s, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, h := range s.GetRuntimeHandlers() {
		names[h.GetName()] = true
	}
	if !names[""] || !names["runc"] || !names["crun"] {
		t.Errorf("handlers are %v, want the default one, runc and crun", s.GetRuntimeHandlers())
	}
	if len(s.GetInfo()) == 0 {
		t.Error("verbose status has no info")
	}
	c, err := n.Runtime.RuntimeConfig(n.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || c.GetLinux() == nil {
		t.Errorf("runtime config is %v, %v, want that of Linux", c, err)
	}
	if _, err := n.Runtime.UpdateRuntimeConfig(n.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.1.2.0/24"}},
	}); err != nil {
		t.Errorf("update of the runtime config: %v", err)
	}
}

// TestSecondDaemon: a second daemon on the same directories is refused with a clear text and harms nothing.
func TestSecondDaemon(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, n.Program("berthd"), "--config", filepath.Join(n.Dir(), "config.toml")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), n.Config.State) && !strings.Contains(string(out), n.Config.Root) && !strings.Contains(string(out), n.Socket()) {
		t.Errorf("second daemon ends with %v and says %q, want an error which names what is in use", err, out)
	}
	n.RunPod()
}

// TestSideBySide: two daemons with different directories do not meet.
func TestSideBySide(t *testing.T) {
	a := harness.Start(t, harness.Options{})
	pa := a.RunPod()
	t.Run("second", func(t *testing.T) {
		b := harness.Start(t, harness.Options{})
		pb := b.RunPod()
		if pa.IP() == pb.IP() {
			t.Errorf("pods of both daemons have the address %s", pa.IP())
		}
		equal(t, "number of pods of the second daemon", len(sandboxes(t, b, nil)), 1)
		pb.Start([]string{"true"}).Exited()
	})
	equal(t, "number of pods of the first daemon", len(sandboxes(t, a, nil)), 1)
	equal(t, "a command in a pod of the first", pa.Start([]string{"sleep", "1000"}).Output("echo", "there"), "there")
}

// TestBadConfiguration: a daemon does not start on a configuration that it does not understand, and says where it is wrong.
func TestBadConfiguration(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	file := filepath.Join(n.Dir(), "bad.toml")
	if err := os.WriteFile(file, []byte("root = \""+n.Dir()+"/other\"\n[log]\nlevle = \"info\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, n.Program("berthd"), "--config", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "bad.toml:3") || !strings.Contains(string(out), "levle") {
		t.Errorf("berthd ends with %v and says %q, want file, line and key", err, out)
	}
}

// TestCommandLine: berth does in one step each what a person wants of a node.
func TestCommandLine(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	berth := func(args ...string) string {
		t.Helper()
		out, err := n.Berth(n.Context(), args...)
		if err != nil {
			t.Errorf("%v", err)
		}
		return out
	}
	has := func(out string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("output is %q, want %q in it", out, w)
			}
		}
	}
	berth("pull", n.Image)
	has(berth("images"), "busybox")
	has(berth("run", "--rm", n.Image, "echo", "said", "in", "passing"), "said in passing")
	p := n.RunPod()
	c := p.Start([]string{"sh", "-c", "echo begun; sleep 1000"})
	n.Eventually("the first line is in the log", func() error { return logHas(c, "stdout F begun") })
	short := c.ID[:10]
	has(berth("pods"), p.ID[:8], p.Config.GetMetadata().GetName())
	has(berth("ps"), c.ID[:8])
	has(berth("--output", "json", "ps"), c.ID)
	has(berth("logs", short), "begun")
	has(berth("exec", short, "hostname"), p.Config.GetHostname())
	has(berth("inspect", short), c.ID)
	has(berth("version"), "berth")
	has(berth("config", "default"), "[network]")
	berth("stop", short)
	berth("rm", short)
	berth("stop", p.ID[:10])
	berth("rm", p.ID[:10])
	berth("rmi", n.Image)
	if left := append(sandboxes(t, n, nil), containers(t, n, nil)...); len(left) > 0 {
		t.Errorf("left after rm: %v", left)
	}
}
