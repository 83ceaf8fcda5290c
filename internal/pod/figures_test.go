package pod

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/internal/stats"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// TestNetworkUsage: the pod's own interface is the default one and not among the others, which are those that a second
// network has added.
func TestNetworkUsage(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	dir := filepath.Join(leakcheck.Dir(t), "ns")
	paths, err := namespace.Create(t.Context(), namespace.Request{Dir: dir, Net: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespace.Remove(context.Background(), dir); err != nil {
			t.Error(err)
		}
	})
	err = namespace.Do(paths.Net, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: podInterface}, PeerName: "net1"})
	})
	if err != nil {
		t.Fatal(err)
	}
	usage, err := networkUsage(paths.Net)
	if err != nil {
		t.Fatal(err)
	}
	d := usage.GetDefaultInterface()
	if usage.GetTimestamp() <= 0 || d.GetName() != podInterface || d.GetRxBytes() == nil || d.GetRxErrors() == nil || d.GetTxBytes() == nil || d.GetTxErrors() == nil {
		t.Errorf("usage is %v, want that of %s by default", usage, podInterface)
	}
	if others := usage.GetInterfaces(); len(others) != 1 || others[0].GetName() != "net1" {
		t.Errorf("other interfaces are %v, want net1", others)
	}
	if usage, err := networkUsage(""); usage != nil || err != nil {
		t.Errorf("on the host's network: %v, %v, want nothing", usage, err)
	}
	if _, err := networkUsage(filepath.Join(dir, "none")); !errdefs.IsNotFound(err) {
		t.Errorf("without its namespace: %v, want not found", err)
	}
}

// TestAbsentFigures: what has no limit, and what the kernel does not keep, is absent and not zero; no swap at all is zero.
func TestAbsentFigures(t *testing.T) {
	f := stats.Container{At: time.Unix(1, 0)}
	if m := memoryUsage(f); m.GetAvailableBytes() != nil || m.GetPsi() != nil || m.GetUsageBytes() == nil {
		t.Errorf("memory is %v", m)
	}
	if swap := swapUsage(f); swap != nil {
		t.Errorf("swap is %v", swap)
	}
	f.Swap = &stats.Swap{Usage: 5}
	if swap := swapUsage(f); swap.GetSwapAvailableBytes() != nil || swap.GetSwapUsageBytes().GetValue() != 5 {
		t.Errorf("swap without a limit is %v", swap)
	}
	f.Swap.Limited = true
	if swap := swapUsage(f); swap.GetSwapAvailableBytes() == nil {
		t.Errorf("swap with a limit of nothing is %v", swap)
	}
	f.IOPressure = &stats.PSI{Some: stats.Pressure{TotalNanos: 7, Avg10: 1, Avg60: 2, Avg300: 3}}
	if psi := ioUsage(f).GetPsi(); psi.GetSome().GetTotal() != 7 || psi.GetSome().GetAvg300() != 3 || psi.GetFull() == nil {
		t.Errorf("pressure is %v", psi)
	}
}
