package network

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	types "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// defaultMTU is used if no uplink tells a smaller one.
	defaultMTU = 1500
	// podDevice is the name of the device in the pod.
	podDevice = "eth0"
	// vethPrefix begins the names of host devices; what follows is the beginning of the pod's ID.
	vethPrefix = "veth"
)

// bridge is the built-in network: one bridge device, a veth pair per pod, addresses out of the lease store.
type bridge struct {
	name       string
	instance   string
	configured subnets // empty: choose; guarded by mu
	leases     *leaseStore
	firewall   *firewall
	guard      *guard

	mu     sync.Mutex
	nets   subnets         // in use, nil until the first pod
	handle *netlink.Handle // one socket for what does not wait; requests on it are one after the other, as in the kernel
}

// attach connects a pod and returns its result.
func (b *bridge) attach(pod Pod, ports []port, device netlink.Link, nets subnets) (Result, error) {
	held, err := b.leases.claim(lease{ID: pod.ID, Pod: pod.String(), Network: Builtin, Ports: ports, Published: true, Bandwidth: pod.Bandwidth}, nets)
	if err != nil {
		return Result{}, err
	}
	// At the same time: nothing runs in the pod before the caller returns, so no frame is sent that the guard would drop.
	admitted := make(chan error, 1)
	go func() { admitted <- b.guard.admit(held) }()
	host, addresses, err := b.join(pod, held, device)
	if err := errors.Join(err, <-admitted); err != nil {
		return Result{}, err
	}
	if len(addresses) < len(held.Addresses) {
		if held, err = b.shrink(held, addresses); err != nil {
			return Result{}, err
		}
	}
	if len(held.Ports) > 0 {
		if err := checkServed(held.Ports, addresses); err != nil {
			return Result{}, err
		}
		if err := b.firewall.publish(held); err != nil {
			return Result{}, err
		}
	}
	return describe(pod, host, addresses)
}

// join connects a pod to the bridge with the addresses of its lease, and returns the host's device and the addresses that the
// pod has.
func (b *bridge) join(pod Pod, held *lease, device netlink.Link) (netlink.Link, []netip.Prefix, error) {
	host, err := b.plug(pod, held, device)
	if err != nil {
		return nil, nil, err
	}
	if held.Bandwidth != (Bandwidth{}) {
		if host, err = netlink.LinkByName(vethName(pod.ID)); err != nil {
			return nil, nil, fmt.Errorf("look up device %s: %w", vethName(pod.ID), err)
		}
		if err := shape(host, held); err != nil {
			return nil, nil, err
		}
	}
	addresses, err := configurePod(pod, held.Addresses)
	return host, addresses, err
}

// shrink replaces the addresses of a lease by some of them.
func (b *bridge) shrink(held *lease, addresses []netip.Prefix) (*lease, error) {
	fewer, err := b.leases.address(held.ID, addresses)
	if err != nil {
		return nil, err
	}
	return fewer, errors.Join(b.guard.dismiss(held), b.guard.admit(fewer))
}

// device returns the host's device of a pod, nil if there is none.
func (b *bridge) device(id string) (netlink.Link, error) {
	link, err := netlink.LinkByName(vethName(id))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up device %s: %w", vethName(id), err)
	}
	return link, nil
}

// unplug takes a device away; the other end in the pod goes with it. It takes the kernel tens of milliseconds, nearly all of
// them waiting. A device that is gone is no error.
func unplug(link netlink.Link) error {
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// prepare returns the bridge, made and configured if it was not there, and its subnets.
func (b *bridge) prepare() (netlink.Link, subnets, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.handle == nil {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return nil, nil, fmt.Errorf("connect to rtnetlink: %w", err)
		}
		b.handle = handle
	}
	link, err := b.handle.LinkByName(b.name)
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil, fmt.Errorf("look up bridge %s: %w", b.name, err)
	}
	if err != nil || b.nets == nil {
		if link, err = b.create(); err != nil {
			return nil, nil, err
		}
	}
	if err := b.firewall.serve(b.nets); err != nil {
		return nil, nil, err
	}
	return link, b.nets, nil
}

// create makes the bridge, or what is missing of it, while no other daemon in this network namespace does the same: which
// subnets are free is known only when a bridge has its addresses. Preconditions: b.mu is held.
func (b *bridge) create() (netlink.Link, error) {
	unlock, err := lockHost()
	if err != nil {
		return nil, err
	}
	link, err := b.createLocked()
	return link, errors.Join(err, unlock())
}

func (b *bridge) createLocked() (netlink.Link, error) {
	nets, err := b.choose()
	if err != nil {
		return nil, err
	}
	mtu, err := uplinkMTU()
	if err != nil {
		return nil, err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = b.name
	// A fixed address: otherwise the bridge takes that of a pod and changes it when the pod goes.
	sum := sha256.Sum256([]byte(b.name))
	attributes.HardwareAddr = net.HardwareAddr{0x02, 0xbe, sum[0], sum[1], sum[2], sum[3]}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make bridge %s: %w", b.name, err)
	}
	link, err := netlink.LinkByName(b.name)
	if err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", b.name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("make bridge %s: a device of type %s has this name", b.name, link.Type())
	}
	// Set afterwards, it is kept; one that a bridge is made with is forgotten when its last port goes (br_mtu_auto_adjust).
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return nil, fmt.Errorf("set MTU of bridge %s to %d: %w", b.name, mtu, err)
	}
	link.Attrs().MTU = mtu
	if err := quietIPv6(b.name, nets); err != nil {
		return nil, err
	}
	for _, gateway := range nets.gateways() {
		if err := addAddress(netlink.AddrAdd, link, gateway); err != nil {
			return nil, fmt.Errorf("give bridge %s address %s: %w", b.name, gateway, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring bridge %s up: %w", b.name, err)
	}
	if err := makeRouter(link, nets); err != nil {
		return nil, err
	}
	b.nets = nets
	return link, nil
}

// choose returns the configured subnets, else those that pods are in already, else free ones.
func (b *bridge) choose() (subnets, error) {
	if len(b.configured) > 0 {
		return b.configured, nil
	}
	for _, held := range b.leases.all() {
		if held.Network == Builtin && len(held.Addresses) > 0 {
			var nets subnets
			for _, address := range held.Addresses {
				nets = append(nets, address.Masked())
			}
			return nets, nil
		}
	}
	return defaultSubnets(b.instance, b.name)
}

// remove deletes the bridge.
func (b *bridge) remove() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nets = nil
	return b.removeLocked()
}

// removeLocked is remove. Preconditions: b.mu is held.
func (b *bridge) removeLocked() error {
	link, err := netlink.LinkByName(b.name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete bridge %s: %w", b.name, err)
	}
	return nil
}

// close gives the socket back.
func (b *bridge) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.handle != nil {
		b.handle.Close()
		b.handle = nil
	}
	return nil
}

// devices lists the host's ends of veth pairs on the bridge.
func (b *bridge) devices() ([]netlink.Link, error) {
	device, err := netlink.LinkByName(b.name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up bridge %s: %w", b.name, err)
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool {
		return l.Attrs().MasterIndex != device.Attrs().Index || !strings.HasPrefix(l.Attrs().Name, vethPrefix)
	}), nil
}

// removeStrays deletes those of the devices that belong to no live pod and to no lease.
func (b *bridge) removeStrays(devices []netlink.Link, live map[string]bool) error {
	owned := map[string]bool{}
	for id := range live {
		owned[vethName(id)] = true
	}
	for _, held := range b.leases.all() {
		owned[vethName(held.ID)] = true
	}
	var errs []error
	for _, link := range devices {
		if !owned[link.Attrs().Name] {
			errs = append(errs, unplug(link))
		}
	}
	return errors.Join(errs...)
}

// plug makes the veth pair, one end on the bridge, the other in the pod, and returns the host's end.
func (b *bridge) plug(pod Pod, held *lease, device netlink.Link) (netlink.Link, error) {
	ns, err := os.Open(pod.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close() //nolint:errcheck // opened for reading
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU = vethName(pod.ID), device.Attrs().MTU
	attributes.MasterIndex, attributes.Flags = device.Attrs().Index, net.FlagUp
	host := &netlink.Veth{
		LinkAttrs: attributes, PeerName: podDevice,
		PeerNamespace: netlink.NsFd(ns.Fd()), PeerHardwareAddr: hardwareAddress(held.Addresses[0].Addr()),
	}
	err = b.handle.LinkAdd(host)
	if errors.Is(err, unix.EEXIST) {
		// An interrupted call for this pod was here before.
		var old netlink.Link
		if old, err = b.device(pod.ID); err == nil && old != nil {
			err = unplug(old)
		}
		if err == nil {
			err = b.handle.LinkAdd(host)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make device %s: %w", attributes.Name, err)
	}
	if len(held.Ports) > 0 {
		// With br_netfilter, what the pod sends to its own host port is turned around on the bridge.
		if err := b.handle.LinkSetHairpin(host, true); err != nil {
			return nil, fmt.Errorf("let pod reach its own host ports by %s: %w", attributes.Name, err)
		}
	}
	return host, nil
}

// vethName derives the name of the host's device from the ID of the pod, so that people find one by the other.
func vethName(id string) string {
	const length = unix.IFNAMSIZ - 1 - len(vethPrefix)
	if len(id) < length {
		id = fmt.Sprintf("%x", sha256.Sum256([]byte(id)))
	}
	return vethPrefix + id[:length]
}

// hardwareAddress derives a MAC address from an IP address. When the address is given to another pod, neighbours need not
// unlearn anything.
func hardwareAddress(a netip.Addr) net.HardwareAddr {
	raw := a.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, raw[len(raw)-4:]...)
}

// describe says in the words of CNI what was done.
func describe(pod Pod, host netlink.Link, addresses []netip.Prefix) (Result, error) {
	inPod := 1
	said := types.Result{CNIVersion: types.ImplementedSpecVersion, Interfaces: []*types.Interface{
		{Name: host.Attrs().Name}, {Name: podDevice, Sandbox: pod.NetNS},
	}}
	result := Result{}
	for _, address := range addresses {
		gateway := subnets{address.Masked()}.gateways()[0].Addr()
		said.IPs = append(said.IPs, &types.IPConfig{Interface: &inPod, Address: *ipNet(address), Gateway: gateway.AsSlice()})
		result.IPs = append(result.IPs, address.Addr())
	}
	raw, err := json.Marshal(said)
	if err != nil {
		return Result{}, fmt.Errorf("describe network of pod %s: %w", pod, err)
	}
	result.Raw = raw
	return result, nil
}
