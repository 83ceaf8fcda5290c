package network

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// With builtin "auto" a node is not ready without a CNI configuration once a kubelet has been seen, also after a restart.
// Pods of others keep the built-in network, those of a kubelet wait for the configuration.
func TestKubeletWaitsForConfiguration(t *testing.T) {
	r := newRig(t, nil)
	must(t, r.Ready())
	r.SawKubelet("test")
	for range 2 {
		if err := r.Ready(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "no CNI configuration in "+r.options.ConfDir) {
			t.Errorf("Ready: %v, want the missing configuration", err)
		}
		r.restart()
	}
	if plan, err := r.Plan(r.pod("other")); err != nil || plan.Kind != Builtin {
		t.Errorf("pod that no kubelet made: %v, %v, want the built-in network", plan.Kind, err)
	}
	pod := r.pod("kubelet")
	pod.Kubelet = true
	if _, err := r.Plan(pod); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("pod of a kubelet: %v, want it refused", err)
	}
	must(t, os.MkdirAll(r.options.ConfDir, 0o755))
	must(t, os.WriteFile(filepath.Join(r.options.ConfDir, "10-mynet.conflist"), []byte(seedList), 0o600))
	eventually(t, "ready with a configuration", func() bool { return r.Ready() == nil })
	if plan, err := r.Plan(pod); err != nil || plan.Kind != CNI {
		t.Errorf("pod of a kubelet with a configuration: %v, %v, want CNI", plan.Kind, err)
	}
}

// A pod of a kubelet is a sign of the kubelet; builtin "always" serves it.
func TestKubeletOnBuiltinNetwork(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Builtin = BuiltinAlways })
	pod := r.pod("kubelet")
	pod.Kubelet = true
	if plan, err := r.Plan(pod); err != nil || plan.Kind != Builtin {
		t.Errorf("plan %v, %v, want the built-in network", plan.Kind, err)
	}
	must(t, r.Ready())
	if !kubeletKnown(r.options.Root) {
		t.Error("the kubelet is not recorded")
	}
}

// Host ports are left to a plugin that opens them, to Cilium, and where the configuration says so.
func TestHostPortsAreLeftToTheNetwork(t *testing.T) {
	const cilium = `{"cniVersion": "0.3.1", "name": "cilium", "plugins": [{"type": "cilium-cni"}]}`
	for _, c := range []struct {
		name, list, setting string
		ours                bool
	}{
		{"plain", seedList, HostPortsAuto, true},
		{"portmap", bridgeList("1.0.0", portmap), HostPortsAuto, false},
		{"cilium", cilium, HostPortsAuto, false},
		{"never", seedList, HostPortsNever, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := withList(t, c.list, func(o *Options) { o.HostPorts = c.setting })
			plan, err := r.Plan(r.pod("a", PortMapping{ContainerPort: 80, HostPort: 8080}))
			must(t, err)
			if plan.HostPorts != c.ours {
				t.Errorf("opened by Berth: %v, want %v", plan.HostPorts, c.ours)
			}
		})
	}
}
