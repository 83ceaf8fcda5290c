package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	sysctlNet = "/proc/sys/net"
	// loopbackMetric and more keep ::1 of other devices behind that of lo, which has 0.
	loopbackMetric = 1024
)

// The addresses by which a host reaches itself.
var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	loopback6 = netip.MustParsePrefix("::1/128")
)

// lockHost keeps other daemons in this network namespace out until the returned function is called. The lock is on the
// namespace itself, so there is no file to leave behind.
func lockHost() (unlock func() error, err error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("lock host network: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock host network: %w", err), f.Close())
	}
	return f.Close, nil
}

// makeRouter lets the host forward to the addresses, and ports of its loopback addresses be translated towards a device.
func makeRouter(device netlink.Link, addresses []netip.Prefix) error {
	for _, address := range addresses {
		settings := [][2]string{{"ipv4/conf/" + device.Attrs().Name + "/route_localnet", "1"}, {"ipv4/ip_forward", "1"}}
		if address.Addr().Is6() {
			if err := errors.Join(keepAdvertisedRoutes(), routeLoopback6(device)); err != nil {
				return err
			}
			settings = [][2]string{{"ipv6/conf/all/forwarding", "1"}}
		}
		for _, setting := range settings {
			if err := setSysctl(setting[0], setting[1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// routeLoopback6 lets answers to [::1] come in by a device. IPv6 has no route_localnet; but the kernel refuses ::1 only in
// what is on the wire (ip6_rcv_core), and looks the translated address up as a local one of the device that the packet came
// in by (rt6_need_strict), so it needs to be one. Pods cannot reach services on ::1 by it, theirs is the address on the wire.
func routeLoopback6(device netlink.Link) error {
	if bridgeFilters6() {
		return nil
	}
	err := netlink.RouteReplace(&netlink.Route{
		LinkIndex: device.Attrs().Index, Dst: ipNet(loopback6), Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL,
		// Each device its own metric: of one metric there can be one route only, the last one would replace the others.
		Scope: netlink.SCOPE_HOST, Priority: loopbackMetric + device.Attrs().Index,
	})
	if err != nil {
		return fmt.Errorf("route %s by %s: %w", loopback6, device.Attrs().Name, err)
	}
	return nil
}

// bridgeFilters6 reports whether br_netfilter sends IPv6 frames through the packet filter before the bridge hands them
// over. Then they are translated back too early: with ::1 on them the kernel takes them for forged.
func bridgeFilters6() bool {
	raw, err := os.ReadFile(filepath.Join(sysctlNet, "bridge/bridge-nf-call-ip6tables"))
	return err == nil && strings.TrimSpace(string(raw)) != "0"
}

// quietIPv6 keeps a bridge of ours from configuring itself, and from duplicate address detection.
func quietIPv6(bridge string, nets subnets) error {
	for _, net := range nets {
		if !net.Addr().Is6() {
			continue
		}
		for _, setting := range [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"accept_redirects", "0"}, {"accept_dad", "0"}} {
			if err := setSysctl("ipv6/conf/"+bridge+"/"+setting[0], setting[1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepAdvertisedRoutes lets devices that take part in IPv6 autoconfiguration go on with it when the host becomes a router:
// accept_ra=1 means "unless forwarding", 2 means "anyway". Without it the host loses its default route.
func keepAdvertisedRoutes() error {
	forwarding, err := os.ReadFile(filepath.Join(sysctlNet, "ipv6/conf/all/forwarding"))
	if err != nil {
		return fmt.Errorf("read IPv6 forwarding: %w", err)
	}
	if strings.TrimSpace(string(forwarding)) != "0" {
		return nil
	}
	entries, err := os.ReadDir(filepath.Join(sysctlNet, "ipv6/conf"))
	if err != nil {
		return fmt.Errorf("list IPv6 devices: %w", err)
	}
	for _, entry := range entries {
		name := "ipv6/conf/" + entry.Name() + "/accept_ra"
		value, err := os.ReadFile(filepath.Join(sysctlNet, name))
		if errors.Is(err, os.ErrNotExist) || entry.Name() == "all" {
			continue // gone meanwhile; "all" has no effect
		}
		if err != nil {
			return fmt.Errorf("read sysctl %s: %w", name, err)
		}
		if strings.TrimSpace(string(value)) != "1" {
			continue
		}
		if err := setSysctl(name, "2"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// setSysctl writes a setting of the host unless it has the value already; /proc/sys may be read-only and right.
func setSysctl(name, value string) error {
	raw, err := os.ReadFile(filepath.Join(sysctlNet, name))
	if err == nil && strings.TrimSpace(string(raw)) == value {
		return nil
	}
	return writeSysctl(name, value)
}

func writeSysctl(name, value string) error {
	f, err := os.OpenFile(filepath.Join(sysctlNet, name), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set sysctl net.%s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}

// uplinkMTU returns the smallest MTU of the devices with a default route: a pod must not send what cannot leave.
func uplinkMTU() (int, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	mtu := defaultMTU
	for _, route := range routes {
		if route.LinkIndex == 0 || route.Dst != nil && !route.Dst.IP.IsUnspecified() {
			continue
		}
		link, err := netlink.LinkByIndex(route.LinkIndex)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("look up uplink: %w", err)
		}
		mtu = min(mtu, link.Attrs().MTU)
	}
	return mtu, nil
}

// routeTo prepares the host for ports of a pod in a network that is not ours: plugins may not have.
func routeTo(addresses []netip.Prefix) error {
	for _, address := range addresses {
		routes, err := netlink.RouteGet(address.Addr().AsSlice())
		if err == nil && len(routes) == 0 {
			err = unix.ENETUNREACH
		}
		if err != nil {
			return fmt.Errorf("find the way to %s: %w", address.Addr(), err)
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return fmt.Errorf("find the way to %s: %w", address.Addr(), err)
		}
		if err := makeRouter(link, []netip.Prefix{address}); err != nil {
			return err
		}
	}
	return nil
}

// checkServed makes sure that each host port can reach an address of the pod.
func checkServed(ports []port, addresses []netip.Prefix) error {
	for _, p := range ports {
		served := false
		for _, address := range addresses {
			served = served || p.serves(address.Addr())
		}
		refuse := func(reason string) error {
			return fmt.Errorf("host_ip %q of host port %d/%s: %s: %w", p.Address, p.Host, p.Protocol, reason, errdefs.ErrFailedPrecondition)
		}
		switch {
		case !served && p.Address.Is6():
			return refuse("the pod has no IPv6 address")
		case !served:
			return refuse("the pod has no IPv4 address")
		case p.Address == loopback6.Addr() && bridgeFilters6():
			return refuse("with br_netfilter the kernel lets no answer to it through (net.bridge.bridge-nf-call-ip6tables is 1)")
		}
	}
	return nil
}

// forgetFlows drops what connection tracking remembers of UDP host ports. An old entry would go on sending a client's
// packets to a pod that is gone, or past one that has just come.
func forgetFlows(held *lease) error {
	ports := map[uint16]bool{}
	for _, p := range held.Ports {
		if p.Protocol == UDP {
			ports[p.Host] = true
		}
	}
	if len(ports) == 0 {
		return nil
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, udpFlows(ports)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget UDP connections of pod %s: %w", held.Pod, err)
		}
	}
	return nil
}

// udpFlows matches connections to one of a set of UDP ports.
type udpFlows map[uint16]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (ports udpFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	return flow.Forward.Protocol == unix.IPPROTO_UDP && ports[flow.Forward.DstPort]
}
