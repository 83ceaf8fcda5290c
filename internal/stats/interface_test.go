package stats

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// pinned makes a network namespace with a pair of devices, one of which sends
// itself packets through the other.
func pinned(t testing.TB) string {
	t.Helper()
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
	privilege.Root(t)
	leakcheck.Check(t)
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

// TestInterfaceNamesAreText: the kernel takes almost any bytes as the name of an interface. A name is
// shown as valid UTF-8, and two that differ stay different.
func TestInterfaceNamesAreText(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	path := pinned(t)
	err := namespace.Do(path, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "bad\xff"}, PeerName: "bad\xfe"})
	})
	if err != nil {
		t.Fatal(err)
	}
	found, err := ReadInterfaces(path)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, i := range found {
		names[i.Name] = true
	}
	if !names[`bad\xff`] || !names[`bad\xfe`] || !names["eth0"] {
		t.Errorf("interfaces are %v", names)
	}
}

// TestInterfacesAreBounded: a pod with many interfaces costs no more than one with some, and eth0 is
// among those that are shown.
func TestInterfacesAreBounded(t *testing.T) {
	var table strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&table, "dummy%d: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", i)
	}
	table.WriteString("  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n")
	found, err := parseInterfaces(table.String())
	if err != nil || len(found) != maxInterfaces || found[0].Name != "eth0" {
		t.Errorf("%d interfaces, error %v, first %+v", len(found), err, found[0])
	}
	file := filepath.Join(t.TempDir(), "dev")
	if err := os.WriteFile(file, []byte(table.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	const limit = 20 << 10
	content, err := readStart(file, limit)
	if err != nil || len(content) > limit+fileBuffer || !strings.HasSuffix(content, "16\n") || !strings.HasPrefix(table.String(), content) {
		t.Errorf("read %d bytes, error %v", len(content), err)
	}
}
