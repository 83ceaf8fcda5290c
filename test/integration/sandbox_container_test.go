package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

// sandboxing is a node with runtimes before which a container stands for the pod: gVisor's, and a configurable shim.
func sandboxing(c *config.Config) {
	allHandlers(c)
	shim := c.Runtime.Handlers["shim"]
	shim.SandboxContainer = config.SandboxContainerAlways
	c.Runtime.Handlers["shim"] = shim
}

// inSandbox finds the processes of the sandbox container of a pod, or of the sandboxes that serve it, by their command line.
func inSandbox(t *testing.T, word, id string) []int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, line := range lines {
		text, err := os.ReadFile(line)
		if err != nil || !strings.HasPrefix(string(text), word) || !strings.Contains(string(text), id) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line)))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, pid)
	}
	return found
}

// infoOf is the verbose status of a pod.
func infoOf(t *testing.T, n *harness.Node, p *harness.Pod) (info struct {
	PID     int
	Problem string
},
) {
	t.Helper()
	status, err := n.Runtime.PodSandboxStatus(n.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(status.GetInfo()["info"]), &info); err != nil {
		t.Fatal(err)
	}
	return info
}

// shared makes a container use the PID namespace of its pod.
func shared(c *runtimeapi.ContainerConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
}

// TestSandboxIsShared: the containers of a gVisor pod run on one kernel, that of the sandbox container. They see each
// other's processes where the pod wants that, end each for itself, and nothing is left of the pod.
func TestSandboxIsShared(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "runc", Configure: sandboxing})
	n.Pull()
	tried(t, n)
	p := n.RunPodWith("runsc", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	app := p.Start([]string{"sleep", "1001"}, shared)
	other := p.Start([]string{"sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"}, shared)
	if got := inSandbox(t, "runsc-sandbox", n.Dir()); len(got) != 1 {
		t.Errorf("the pod has the sandboxes %v, want one", got)
	}
	if got := other.Output("ps"); !strings.Contains(got, "sleep 1001") || !strings.Contains(got, "/pause") {
		t.Errorf("the processes of the pod are\n%s", got)
	}
	list, err := n.Runtime.ListContainers(n.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.GetContainers()) != 2 {
		t.Errorf("listed are %v", list.GetContainers())
	}
	n.KillDaemon()
	tried(t, n)
	other.Stop(10)
	equal(t, "exit code after a stop", other.Exited().GetExitCode(), 9)
	equal(t, "the sandbox lives on", app.Output("echo", "hello"), "hello")
	app.Stop(0)
	equal(t, "exit code after a kill", app.Exited().GetExitCode(), 137)
	equal(t, "exit code", p.Start([]string{"sh", "-c", "exit 42"}, shared).Exited().GetExitCode(), 42)
	last := p.Start([]string{"sleep", "1002"}, shared)
	p.Stop()
	equal(t, "exit code after the pod's stop", last.Exited().GetExitCode(), 137)
	if got := inSandbox(t, "runsc-", n.Dir()); len(got) != 0 {
		t.Errorf("of the pod that was stopped there are %v", got)
	}
	p.Remove()
}

// TestSandboxDies: when the sandbox container ends, its pod is not ready and says why, and its containers have ended.
func TestSandboxDies(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "runc", Configure: sandboxing})
	n.Pull()
	tried(t, n)
	for _, handler := range []string{"runsc", "shim"} {
		for _, alone := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s_%t", handler, alone), func(t *testing.T) {
				p := n.RunPodWith(handler)
				c := p.Start([]string{"sleep", "1000"})
				kill := func() {
					if err := syscall.Kill(infoOf(t, n, p).PID, syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
				if alone {
					kill()
					n.KillShim()
				} else {
					kill()
				}
				n.Eventually("the pod is not ready", func() error {
					if got := p.Status(); got.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
						return fmt.Errorf("it is %s", got.GetState())
					}
					return nil
				})
				if got := infoOf(t, n, p).Problem; !strings.Contains(got, "sandbox container") {
					t.Errorf("the problem of the pod is %q", got)
				}
				if handler == "runsc" {
					s := c.Exited()
					equal(t, "reason of the container", s.GetReason(), "ContainerStatusUnknown")
				}
				p.Stop()
				p.Remove()
			})
		}
	}
}
