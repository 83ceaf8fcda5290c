package stats

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/test/census"
)

// pinned makes a network namespace with a pair of devices, one of which sends
// itself packets through the other.
func pinned(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(census.Dir(t), "ns")
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
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		for _, name := range []string{"eth0", "eth1"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths.Net
}

// TestReadInterfaces: the counters are those which the kernel shows inside.
func TestReadInterfaces(t *testing.T) {
	census.Check(t)
	path := pinned(t)
	// The kernel announces the devices' addresses by itself some time after
	// they came up, so what is sent by one has at most been received since.
	got, err := ReadInterfaces(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Name == "lo" || got[1].Name == "lo" {
		t.Fatalf("interfaces are %+v, want eth0 and eth1", got)
	}
	if _, err := ReadInterfaces(filepath.Join(t.TempDir(), "none")); !errdefs.IsNotFound(err) {
		t.Errorf("interfaces of no namespace: error %v, want not found", err)
	}
}

func BenchmarkReadInterfaces(b *testing.B) {
	path := pinned(b)
	for b.Loop() {
		if _, err := ReadInterfaces(path); err != nil {
			b.Fatal(err)
		}
	}
}
