package stats

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

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

// TestReadInterfaces: what one device has sent the other has received, as the
// kernel shows it inside the namespace.
func TestReadInterfaces(t *testing.T) {
	census.Check(t)
	path := pinned(t)
	var got []Interface
	// The kernel announces the addresses that it gave the devices by itself.
	for end := time.Now().Add(testDeadline); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var err error
		if got, err = ReadInterfaces(path); err != nil {
			t.Fatal(err)
		}
		if len(got) != 2 || got[0].Name+got[1].Name != "eth1eth0" {
			t.Fatalf("interfaces are %+v, want eth0 and eth1", got)
		}
		if got[0].Sent.Packets > 0 && got[0].Sent == got[1].Received && got[1].Sent == got[0].Received {
			break
		}
	}
	if got[0].Sent.Packets == 0 || got[0].Sent.Bytes == 0 || got[0].Sent != got[1].Received {
		t.Errorf("interfaces have %+v, want the same received as sent", got)
	}
	if _, err := ReadInterfaces(filepath.Join(t.TempDir(), "none")); !errdefs.IsNotFound(err) {
		t.Errorf("interfaces of no namespace: error %v, want not found", err)
	}
}

// TestParseInterfaces gives names and numbers as they may be.
func TestParseInterfaces(t *testing.T) {
	got, err := parseInterfaces("Inter-|   Receive  |  Transmit\n face |bytes    packets\n    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n" +
		"  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\neth0:1:18446744073709551615 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n")
	want := []Interface{
		{Name: "eth0", Received: Traffic{1, 2, 3, 4}, Sent: Traffic{5, 6, 7, 8}},
		{Name: "eth0:1", Received: Traffic{1<<64 - 1, 2, 3, 4}, Sent: Traffic{5, 6, 7, 8}},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
	if _, err := parseInterfaces("eth0: many 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n"); err == nil {
		t.Error("many bytes are accepted as a number")
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
