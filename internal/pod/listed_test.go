package pod

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestListsStayWithinTheirBound: a pod with which the lists would exceed what clients accept is refused, nothing of it is left,
// and it is admitted once others are gone.
func TestListsStayWithinTheirBound(t *testing.T) {
	n := newNode(t)
	config := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "one-more", Namespace: "default", Uid: "one-more"}, Linux: &runtimeapi.LinuxPodSandboxConfig{
		SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
	}}
	others := func(size int) {
		n.engine.mu.Lock()
		defer n.engine.mu.Unlock()
		n.engine.containers.listed = size
	}
	others(maxListed - listedOverhead)
	_, err := n.engine.RunSandbox(t.Context(), config, "")
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "remove some") {
		t.Errorf("beyond the bound: %v", err)
	}
	if left := n.engine.Sandboxes(Filter{}); len(left) > 0 {
		t.Errorf("pods after the refusal: %v", left)
	}
	others(0)
	id, err := n.engine.RunSandbox(t.Context(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	if n.engine.sandboxes.listed < listedOverhead {
		t.Errorf("a pod counts %d", n.engine.sandboxes.listed)
	}
	if err := n.engine.RemoveSandbox(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if n.engine.sandboxes.listed != 0 {
		t.Errorf("without pods the account is %d", n.engine.sandboxes.listed)
	}
}
