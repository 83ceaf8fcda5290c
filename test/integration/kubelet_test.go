package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// TestKubeletIsRecognized: a client whose program is kubelet makes a node without a CNI configuration not ready, also after a
// restart of the daemon; crictl does not. Pods of others keep the built-in network, those of a kubelet are refused.
func TestKubeletIsRecognized(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Ready()
	program, err := crictlProgram()
	if err != nil {
		t.Fatal(err)
	}
	call := func(program string) {
		t.Helper()
		cmd := exec.CommandContext(n.Context(), program, "--runtime-endpoint", n.Config.Listen, "version")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", cmd, err, out)
		}
	}
	call(program)
	if got := networkProblem(t, n); got != "" {
		t.Errorf("after a call of crictl: %s", got)
	}
	kubelet := filepath.Join(t.TempDir(), "kubelet")
	data, err := os.ReadFile(program)
	if err == nil {
		err = os.WriteFile(kubelet, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	call(kubelet)
	for range 2 {
		if got := networkProblem(t, n); !strings.Contains(got, "no CNI configuration in "+n.Config.Network.CNIConfDir) {
			t.Errorf("after a call of kubelet: %q, want the missing configuration", got)
		}
		n.KillDaemon()
	}
	n.RunPod()
	config := n.PodConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"kubernetes.io/config.source": "api"}
	})
	if _, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: config}); err == nil || !strings.Contains(err.Error(), "no CNI configuration") {
		t.Errorf("pod of a kubelet: %v, want it refused as there is no CNI configuration", err)
	}
}

// networkProblem returns why the network is not ready, "" if it is.
func networkProblem(t *testing.T, n *harness.Node) string {
	t.Helper()
	status, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range status.GetStatus().GetConditions() {
		if c.GetType() == runtimeapi.NetworkReady && !c.GetStatus() {
			return c.GetMessage()
		}
	}
	return ""
}

// TestHostsFile: a container whose request mounts no hosts file has a copy of the host's, which it may change for its pod.
func TestHostsFile(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	want, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]runtimeapi.NamespaceMode{"pod": runtimeapi.NamespaceMode_POD, "host": runtimeapi.NamespaceMode_NODE} {
		c := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = mode
		}).Start([]string{"sleep", "1000"})
		equal(t, "hosts in the network of the "+name, c.Output("cat", "/etc/hosts"), strings.TrimSpace(string(want)))
		c.Output("sh", "-c", "echo 192.0.2.1 added >>/etc/hosts")
		if now, err := os.ReadFile("/etc/hosts"); err != nil || string(now) != string(want) {
			t.Errorf("a container in the network of the %s has changed the host's hosts file (%v)", name, err)
		}
	}
}

// TestNetworkNamespaceIsPinned: while a pod exists, its network namespace is cni-ID in the configured directory, also after a
// restart of the daemon; then it is gone.
func TestNetworkNamespaceIsPinned(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	pin := filepath.Join(n.Config.Network.NetNSDir, "cni-"+p.ID)
	address := func() string {
		t.Helper()
		out, err := exec.CommandContext(n.Context(), "nsenter", "--net="+pin, "ip", "address", "show", "eth0").CombinedOutput()
		if err != nil {
			t.Fatalf("enter %s: %v: %s", pin, err, out)
		}
		return string(out)
	}
	if got := address(); !strings.Contains(got, p.IP()) {
		t.Errorf("%s has no address %s but\n%s", pin, p.IP(), got)
	}
	n.KillDaemon()
	n.Ready()
	if got := p.Start([]string{"sleep", "1000"}).Output("ip", "address", "show", "eth0"); !strings.Contains(got, p.IP()) {
		t.Errorf("a container that is started after a restart has no address %s but\n%s", p.IP(), got)
	}
	p.Stop()
	p.Remove()
	if _, err := os.Stat(pin); !os.IsNotExist(err) {
		t.Errorf("%s after the pod's removal: %v, want it gone", pin, err)
	}
}
