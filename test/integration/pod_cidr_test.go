package integration

import (
	"net/netip"
	"runtime"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

// TestPodCIDR: with builtin_subnet = "pod-cidr" the built-in network has the range that kubelet announces. The node is not ready
// before that, the range outlives the daemon, and another one is refused while pods have addresses of it.
func TestPodCIDR(t *testing.T) {
	var free []string
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		free = c.Network.BuiltinSubnet
		c.Network.Builtin, c.Network.BuiltinSubnet = config.BuiltinAlways, []string{config.SubnetPodCIDR}
	}})
	if got := networkProblem(t, n); got == "" {
		t.Error("the network is ready before kubelet has announced a range")
	}
	_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig()})
	wantError(t, err, codes.FailedPrecondition, "pod-cidr", "not announced")
	announce := func(cidr string) error {
		_, err := n.Runtime.UpdateRuntimeConfig(n.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	for bad, word := range map[string]string{
		"10.0.0.0": "10.0.0.0", "10.0.0.1/24": "10.0.0.0/24", "10.0.0.0/24,10.1.0.0/24": "10.1.0.0/24", "10.0.0.0/31": "too small",
	} {
		wantError(t, announce(bad), codes.InvalidArgument, "pod_cidr", word)
	}
	range4, other := netip.MustParsePrefix(free[0]), "192.0.2.0/24"
	if err := announce(range4.String() + ",fd00:be:7::/64"); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if got := networkProblem(t, n); got != "" {
			t.Errorf("the network is not ready: %s", got)
		}
		p := n.RunPod()
		if ip, err := netip.ParseAddr(p.IP()); err != nil || !range4.Contains(ip) {
			t.Errorf("a pod has the address %s, want one of %s", p.IP(), range4)
		}
		wantError(t, announce(other), codes.FailedPrecondition, other, range4.String())
		p.Remove()
	}
	check()
	n.KillDaemon()
	n.Ready()
	check()
	// The device of a removed pod keeps its addresses until the kernel has deleted it.
	for err = announce(other); status.Code(err) == codes.FailedPrecondition && n.Context().Err() == nil; err = announce(other) {
		runtime.Gosched()
	}
	if err != nil {
		t.Errorf("another range without pods: %v", err)
	}
}
