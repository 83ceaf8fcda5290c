package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

// allHandlers is a node with every kind of runtime. That of gVisor runs without KVM, and to use the network of the
// pod as the kernel has it: its own stack would take the addresses away from the pod's other containers.
func allHandlers(c *config.Config) {
	c.Runtime.Handlers["runsc"] = config.Handler{
		Type: config.HandlerOCI, Path: "runsc", Options: map[string]string{"platform": "ptrace", "network": "host"},
	}
	c.Runtime.Handlers["shim"] = config.Handler{Type: config.HandlerShimV2, Path: "io.containerd.runc.v2"}
	c.Runtime.Handlers["shim-crun"] = config.Handler{
		Type: config.HandlerShimV2, Path: "containerd-shim-runc-v2", Options: map[string]string{"binary_name": "crun"},
	}
}

// TestHandlers: a pod of two containers with each runtime, through the daemon's death and the supervisor's.
func TestHandlers(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "runc", Configure: allHandlers})
	n.Pull()
	tried(t, n)
	for _, handler := range []string{"runc", "crun", "runsc", "shim", "shim-crun"} {
		t.Run(handler, func(t *testing.T) {
			p := n.RunPodWith(handler)
			web := p.Start([]string{"sh", "-c", "echo up; echo oops >&2; trap 'echo bye; exit 7' TERM; mkdir /w; echo hello >/w/index.html; httpd -p 8080 -h /w; while :; do sleep 0.1; done"})
			side := p.Start([]string{"sleep", "1000"})
			equal(t, "handler of the pod", p.Status().GetRuntimeHandler(), handler)
			n.Eventually("the pod answers at its address", func() error { return get(net.JoinHostPort(p.IP(), "8080"), "hello") })
			n.Eventually("the other container reaches it on loopback", func() error {
				// Connecting must do: reads of the gVisor of 2022 may fail on a kernel of today, with EAGAIN.
				if got := side.Exec("nc", "-w", "5", "127.0.0.1", "8080", "-e", "true"); got.GetExitCode() != 0 {
					return fmt.Errorf("got %q %q", got.GetStdout(), got.GetStderr())
				}
				return nil
			})
			n.KillDaemon()
			tried(t, n)
			execs(t, n, web)
			n.KillShim()
			execs(t, n, web)
			web.Stop(10)
			s := web.Exited()
			equal(t, "exit code after a stop", s.GetExitCode(), 7)
			logged := strings.Join(web.LogLines(), "\n")
			for _, want := range []string{"stdout F up", "stderr F oops", "stdout F bye"} {
				if !strings.Contains(logged, want) {
					t.Errorf("%q is not in the log:\n%s", want, logged)
				}
			}
			side.Stop(0)
			equal(t, "exit code after a kill", side.Exited().GetExitCode(), 137)
			equal(t, "exit code", p.Start([]string{"sh", "-c", "exit 42"}).Exited().GetExitCode(), 42)
			p.Stop()
			p.Remove()
		})
	}
}

// tried waits until the daemon has tried all its handlers: what it tries one with is its own to remove.
func tried(t *testing.T, n *harness.Node) {
	t.Helper()
	n.Eventually("all handlers were tried", func() error {
		status, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err == nil && strings.Contains(status.GetInfo()["handlers"], "still being tried") {
			err = errors.New("some are still being tried")
		}
		return err
	})
}

// execs runs commands in a container: their codes and output come back, and one that takes too long is ended.
func execs(t *testing.T, n *harness.Node, c *harness.Container) {
	t.Helper()
	got := c.Exec("sh", "-c", "echo out; echo err >&2; exit 5")
	if string(got.GetStdout()) != "out\n" || string(got.GetStderr()) != "err\n" || got.GetExitCode() != 5 {
		t.Errorf("exec: got %q %q %d", got.GetStdout(), got.GetStderr(), got.GetExitCode())
	}
	_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sleep", "1000"}, Timeout: 1})
	wantError(t, err, codes.DeadlineExceeded)
}

// get fetches the page of a pod's web server.
func get(address, want string) error {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		return err
	}
	page := make([]byte, 4096)
	var text strings.Builder
	for err == nil {
		var count int
		count, err = conn.Read(page)
		text.Write(page[:count])
	}
	if !strings.Contains(text.String(), want) {
		return fmt.Errorf("the page is %q", text.String())
	}
	return nil
}

// TestHandlersInStatus: one entry for each handler and one for the default, with the features that each has.
func TestHandlersInStatus(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "runc", Configure: func(c *config.Config) {
		allHandlers(c)
		hanging := filepath.Join(c.Root, "../hanging")
		script(t, hanging, "sleep 1000 & sleep 1000")
		c.Runtime.Handlers["hanging"] = config.Handler{Type: config.HandlerOCI, Path: hanging}
		c.Runtime.Handlers["absent"] = config.Handler{Type: config.HandlerShimV2, Path: "io.containerd.absent.v2"}
	}})
	features := map[string]*runtimeapi.RuntimeHandlerFeatures{}
	n.Eventually("every handler but one was tried", func() error {
		status, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			return err
		}
		var problems map[string]struct{ Problem string }
		if err := json.Unmarshal([]byte(status.GetInfo()["handlers"]), &problems); err != nil {
			return err
		}
		for _, name := range []string{"runc", "crun", "runsc", "shim", "shim-crun"} {
			if p, ok := problems[name]; !ok || p.Problem != "" {
				return fmt.Errorf("handler %s: %q", name, p.Problem)
			}
		}
		if p := problems["hanging"].Problem; !strings.Contains(p, "is still being tried") && !strings.Contains(p, "in time") {
			return fmt.Errorf("the handler that hangs: %q", p)
		}
		if p := problems["absent"].Problem; !strings.Contains(p, "containerd-shim-absent-v2") {
			return fmt.Errorf("the handler that is not there: %q", p)
		}
		for _, h := range status.GetRuntimeHandlers() {
			features[h.GetName()] = h.GetFeatures()
		}
		return nil
	})
	if len(features) != 8 || !features["crun"].GetRecursiveReadOnlyMounts() || features["runsc"].GetRecursiveReadOnlyMounts() ||
		!features["shim-crun"].GetRecursiveReadOnlyMounts() || features["absent"].GetRecursiveReadOnlyMounts() ||
		features[""].GetRecursiveReadOnlyMounts() != features["runc"].GetRecursiveReadOnlyMounts() {
		t.Errorf("features are %v", features)
	}
	_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig(), RuntimeHandler: "absent"})
	wantError(t, err, codes.FailedPrecondition, "absent")
	_, err = n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig(), RuntimeHandler: "kata"})
	wantError(t, err, codes.InvalidArgument, "kata", "runsc")
}

// TestHandlerIsTriedAgain: a handler that did not work when the daemon started is of use once it does.
func TestHandlerIsTriedAgain(t *testing.T) {
	var late string
	n := harness.Start(t, harness.Options{Handler: "runc", Configure: func(c *config.Config) {
		late = filepath.Join(c.Root, "../late")
		c.Runtime.Handlers["late"] = config.Handler{Type: config.HandlerOCI, Path: late}
	}})
	run := func() error {
		_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig(), RuntimeHandler: "late"})
		return err
	}
	wantError(t, run(), codes.FailedPrecondition, "late")
	script(t, late, `exec runc "$@"`)
	n.Eventually("it works", run)
}

// TestAnnotations: a runtime gets those annotations that its handler lists, of the pod and of the container, and no other.
func TestAnnotations(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "runc", Configure: func(c *config.Config) {
		h := c.Runtime.Handlers["crun"]
		h.Annotations = []string{"example.com/*", "io.kubernetes.cri.*", "run.oci.keep_original_groups"}
		c.Runtime.Handlers["crun"] = h
	}})
	n.Pull()
	ours := map[string]string{"example.com/pod": "p", "example.com/both": "p", "example.com/a/b": "p", "run.oci.hooks.stdout": "/x", "io.kubernetes.cri.sandbox-id": "false"}
	for handler, want := range map[string]map[string]string{
		"crun": {"example.com/pod": "p", "example.com/both": "c", "run.oci.keep_original_groups": "1"},
		"runc": {},
	} {
		t.Run(handler, func(t *testing.T) {
			p := n.RunPodWith(handler, func(c *runtimeapi.PodSandboxConfig) { c.Annotations = ours })
			c := p.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) {
				c.Annotations = map[string]string{"example.com/both": "c", "run.oci.keep_original_groups": "1", "run.oci.seccomp.receiver": "/x"}
			})
			text, err := os.ReadFile(filepath.Join(n.Dir(), "run/containers", c.ID, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			var s specs.Spec
			if err := json.Unmarshal(text, &s); err != nil {
				t.Fatal(err)
			}
			equal(t, "sandbox ID", s.Annotations["io.kubernetes.cri.sandbox-id"], p.ID)
			for key, value := range s.Annotations {
				if !strings.HasPrefix(key, "io.kubernetes.cri.") && want[key] != value {
					t.Errorf("annotation %s: %q", key, value)
				}
			}
			for key, value := range want {
				equal(t, "annotation "+key, s.Annotations[key], value)
			}
			p.Stop()
			p.Remove()
		})
	}
}
