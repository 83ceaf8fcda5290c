package harness

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
)

// PortmapList is a CNI configuration of bridge, host-local and portmap with names and addresses of its own. The plugins
// never remove their bridge and their lease directory, so these are removed when the test ends; a lease that is left
// fails it.
func PortmapList(version string) func(testing.TB) string {
	return func(t testing.TB) string {
		t.Helper()
		n := rand.N(1 << 15)
		name, bridge := fmt.Sprintf("berth-test-%d", n), fmt.Sprintf("bcni%d", n)
		removeLater(t, name, bridge)
		return portmapList(version, name, bridge, n)
	}
}

func portmapList(version, name, bridge string, n int) string {
	return fmt.Sprintf(`{
	"cniVersion": %q, "name": %q,
	"plugins": [
		{"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
		 "ipam": {"type": "host-local", "subnet": "10.%d.%d.0/24", "routes": [{"dst": "0.0.0.0/0"}]}},
		{"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
	]
}`, version, name, bridge, n>>8, n&0xff)
}

// SeedConflist is the list of the bridge and host-local plugins that published descriptions of CRI runtimes show, as it
// stands there.
func SeedConflist(t testing.TB) string {
	t.Helper()
	removeLater(t, "mynet", "cni0")
	return `{
    "cniVersion": "0.3.0",
    "name": "mynet",
    "plugins": [{
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "ipMasq": true,
        "ipam": {
            "type": "host-local",
            "subnet": "10.22.0.0/16",
            "routes": [{"dst": "0.0.0.0/0"}]
        }
    }]
}`
}

// removeLater removes what the plugins leave of a network when the test ends.
func removeLater(t testing.TB, name, bridge string) {
	t.Helper()
	t.Cleanup(func() {
		link, err := netlink.LinkByName(bridge)
		var none netlink.LinkNotFoundError
		switch {
		case errors.As(err, &none):
		case err != nil:
			t.Errorf("find the bridge of the CNI network: %v", err)
		default:
			if err := netlink.LinkDel(link); err != nil {
				t.Errorf("remove the bridge of the CNI network: %v", err)
			}
		}
		dir := "/var/lib/cni/networks/" + name
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("look for leases: %v", err)
		}
		for _, e := range entries {
			if e.Name() != "lock" && e.Name() != "last_reserved_ip.0" {
				t.Errorf("the lease of %s is left in %s", e.Name(), dir)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the leases of the CNI network: %v", err)
		}
	})
}
