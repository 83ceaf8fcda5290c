package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/namespace"
)

// configurePod gives the device in the pod its addresses and routes and brings it up. It returns the addresses that the pod
// has: a pod may have switched IPv6 off for itself by a sysctl.
func configurePod(pod Pod, addresses []netip.Prefix) ([]netip.Prefix, error) {
	var given []netip.Prefix
	err := namespace.Do(pod.NetNS, func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer handle.Close()
		link, err := handle.LinkByName(podDevice)
		if err != nil {
			return fmt.Errorf("look up %s: %w", podDevice, err)
		}
		if err := ignoreRouters(pod.Sysctls); err != nil {
			return err
		}
		for _, address := range addresses {
			err := addAddress(handle.AddrAdd, link, address)
			if address.Addr().Is6() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) {
				continue
			}
			if err != nil {
				return fmt.Errorf("give %s address %s: %w", podDevice, address, err)
			}
			given = append(given, address)
		}
		if err := handle.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring %s up: %w", podDevice, err)
		}
		for _, address := range given {
			gateway := subnets{address.Masked()}.gateways()[0].Addr()
			route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}
			if err := handle.RouteReplace(route); err != nil {
				return fmt.Errorf("route by %s: %w", gateway, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("configure network namespace %s: %w", pod.NetNS, err)
	}
	return given, nil
}

// addAddress gives a device an address, which it may have. Duplicate address detection would only delay IPv6: the lease store
// gives no address twice.
func addAddress(add func(netlink.Link, *netlink.Addr) error, link netlink.Link, address netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(address)}
	if address.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := add(link, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// ignoreRouters keeps the network namespace of the calling thread from taking routes and addresses from router
// advertisements and redirects. Settings that the pod asks for itself are left alone.
func ignoreRouters(asked map[string]string) error {
	own := map[string]bool{}
	for name := range asked {
		own[strings.ReplaceAll(name, ".", "/")] = true
	}
	for _, device := range []string{"all", "default", podDevice} {
		for _, setting := range []string{"ipv4/conf/" + device + "/accept_redirects", "ipv6/conf/" + device + "/accept_redirects", "ipv6/conf/" + device + "/accept_ra"} {
			if own["net/"+setting] {
				continue
			}
			if err := writeSysctl(setting, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err // a kernel may have no IPv6
			}
		}
	}
	return nil
}
