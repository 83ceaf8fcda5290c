package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Fields of frames and of what they carry.
const (
	etherSource, etherType = 6, 12
	etherLength            = 6
	arpFormat              = 0
	arpSenderEther         = 8
	arpSenderIP            = 14
	icmpType               = 0
	udpSource, udpTarget   = 0, 2
	neighborTarget         = 8
)

// Types of ICMP messages that only a router sends, and of the one that claims an IPv6 address.
const (
	icmp4Redirect         = 5
	icmp6Advertisement    = 134 // of a router
	icmp6NeighborAnswer   = 136
	icmp6Redirect         = 137
	ethernetARP, etherIP4 = "\x08\x06", "\x08\x00"
	etherIP6              = "\x86\xdd"
	// Ports of DHCP and DHCPv6. Clients take answers from any port.
	dhcpServer, dhcpClient   = "\x00\x43", "\x00\x44"
	dhcp6Server, dhcp6Client = "\x02\x23", "\x02\x22"
	// arpOverEther is the beginning of an ARP packet about IPv4 over Ethernet.
	arpOverEther = "\x00\x01\x08\x00\x06\x04"
)

// guard is the nftables table of the bridge family. It drops frames by which a pod of the built-in network claims an address
// that is not its own, or to be a router (CVE-2020-10749). Pods may have every right over their own network namespace, so
// this is enforced at the host's end of the veth pair.
//
// A pod is in the table before anything runs in it and until its device is gone. A pod costs one transaction of elements.
type guard struct {
	*firewall
	log *slog.Logger

	// Guarded by firewall.mu.
	there       bool // this process has made the table
	unsupported bool // the kernel has no nftables for bridges
}

// guardSets are the sets of the table:
//
//	ports:  device                    of pods
//	own4:   device . MAC . IPv4
//	own6:   device . MAC . IPv6       with the link-local address
type guardSets struct {
	ports, own4, own6 *nftables.Set
}

func newGuardSets(table *nftables.Table) guardSets {
	own := func(id uint32, name string, address nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{
			Table: table, Name: name, ID: id, Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, address),
		}
	}
	return guardSets{
		ports: &nftables.Set{Table: table, Name: "ports", ID: 1, KeyType: nftables.TypeIFName},
		own4:  own(2, "own4", nftables.TypeIPAddr),
		own6:  own(3, "own6", nftables.TypeIP6Addr),
	}
}

// admit lets the device of a lease send from the addresses of the lease. The table is made if it is not there. A kernel
// without nftables for bridges is logged once: the pod is connected without the guard.
func (g *guard) admit(l *lease) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.unsupported {
		return nil
	}
	err := error(unix.ENOENT)
	if g.there {
		err = g.change((*nftables.Conn).SetAddElements, l)
	}
	if errors.Is(err, unix.ENOENT) {
		err = g.rebuild("")
	}
	if g.tolerate(err) {
		return nil
	}
	return wrapGuard(l, err)
}

// tolerate reports whether an error says that the kernel has no nftables for bridges. Preconditions: g.mu is held.
func (g *guard) tolerate(err error) bool {
	for _, missing := range []error{unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ENOENT} {
		if errors.Is(err, missing) {
			g.unsupported = true
			g.log.Warn("pods of the built-in network are not guarded against each other: the kernel lacks nftables for bridges", "error", err)
			return true
		}
	}
	return false
}

func wrapGuard(l *lease, err error) error {
	if err != nil {
		return fmt.Errorf("guard the addresses of pod %s: %w", l.Pod, err)
	}
	return nil
}

// dismiss removes a lease whose device is gone.
func (g *guard) dismiss(l *lease) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.there {
		return nil
	}
	err := g.change((*nftables.Conn).SetDeleteElements, l)
	if errors.Is(err, unix.ENOENT) {
		err = g.rebuild(l.ID) // one element is missing, so the transaction removed none
	}
	return wrapGuard(l, err)
}

// restore makes the table what the lease store says, if a pod of the built-in network is in it.
func (g *guard) restore() error {
	if !slices.ContainsFunc(g.leases.all(), func(l *lease) bool { return l.Network == Builtin }) {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.unsupported {
		return nil
	}
	err := g.rebuild("")
	if g.tolerate(err) {
		return nil
	}
	return err
}

// remove deletes the table, also one that an earlier process has made.
func (g *guard) remove() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	there, err := g.exists()
	if err != nil || !there {
		return err
	}
	g.there = false
	err = g.transact(func(conn *nftables.Conn) error {
		conn.DelTable(g.bridgeTable())
		return conn.Flush()
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables table bridge %s: %w", g.table, err)
	}
	return nil
}

// exists looks the table up. A kernel without nftables for bridges has none. Preconditions: g.mu is held.
func (g *guard) exists() (bool, error) {
	err := g.transact(func(conn *nftables.Conn) error {
		_, err := conn.ListTableOfFamily(g.table, nftables.TableFamilyBridge)
		return err
	})
	for _, missing := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT} {
		if errors.Is(err, missing) {
			return false, nil
		}
	}
	if err != nil {
		return false, fmt.Errorf("look up nftables table bridge %s: %w", g.table, err)
	}
	return true, nil
}

func (g *guard) bridgeTable() *nftables.Table {
	return &nftables.Table{Name: g.table, Family: nftables.TableFamilyBridge}
}

// rebuild replaces the table by one with every lease of the built-in network but one. Preconditions: g.mu is held.
func (g *guard) rebuild(without string) error {
	table := g.bridgeTable()
	sets := newGuardSets(table)
	err := g.transact(func(conn *nftables.Conn) error {
		conn.AddTable(table) // so that there is one to delete
		conn.DelTable(table)
		conn.AddTable(table)
		for _, set := range []*nftables.Set{sets.ports, sets.own4, sets.own6} {
			if err := conn.AddSet(set, nil); err != nil {
				return err
			}
		}
		addGuardRules(conn, table, sets)
		for _, l := range g.leases.all() {
			if l.ID == without {
				continue
			}
			if err := sets.each(l, conn.SetAddElements); err != nil {
				return err
			}
		}
		return conn.Flush()
	})
	g.there = err == nil
	if err != nil {
		return fmt.Errorf("make nftables table bridge %s: %w", g.table, err)
	}
	return nil
}

// change applies one transaction to the elements of a lease. Preconditions: g.mu is held.
func (g *guard) change(apply func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error, l *lease) error {
	sets := newGuardSets(g.bridgeTable())
	return g.transact(func(conn *nftables.Conn) error {
		if err := sets.each(l, func(s *nftables.Set, e []nftables.SetElement) error { return apply(conn, s, e) }); err != nil {
			return err
		}
		return conn.Flush()
	})
}

// each calls apply for the elements of a lease, set by set.
func (s guardSets) each(l *lease, apply func(*nftables.Set, []nftables.SetElement) error) error {
	if l.Network != Builtin || len(l.Addresses) == 0 {
		return nil
	}
	port := deviceName(vethName(l.ID))
	mac := hardwareAddress(l.Addresses[0].Addr())
	var own4, own6 []nftables.SetElement
	add := func(address netip.Addr) {
		e := nftables.SetElement{Key: join(port, mac, address.AsSlice())}
		if address.Is4() {
			own4 = append(own4, e)
		} else {
			own6 = append(own6, e)
		}
	}
	add(linkLocal(mac))
	for _, address := range l.Addresses {
		add(address.Addr())
	}
	if err := apply(s.ports, []nftables.SetElement{{Key: port}}); err != nil {
		return err
	}
	if err := apply(s.own6, own6); err != nil || len(own4) == 0 {
		return err
	}
	return apply(s.own4, own4)
}

// linkLocal returns the address that the kernel derives from a MAC address (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// deviceName is the name of a device as the kernel compares it.
func deviceName(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}

// addGuardRules writes the chains:
//
//	prerouting   from a device in ports: jump pod
//	pod          ARP over Ethernet, sender and source are the pod's: accept
//	             IPv4: drop redirects and what DHCP servers send; source is the pod's: accept
//	             IPv6: drop router advertisements, redirects, what DHCPv6 servers send, neighbor advertisements for the
//	                   address of another; source is the pod's: accept
//	             drop
//
// The type is read off the frame, so a frame with a VLAN tag or of 802.2 is none of the three: a receiver would strip the
// header and find inside what is refused here (CVE-2021-27853). The kernel finds the ICMPv6 header behind extension headers.
func addGuardRules(conn *nftables.Conn, table *nftables.Table, sets guardSets) {
	base := conn.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	pod := conn.AddChain(&nftables.Chain{Name: "pod", Table: table})
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(parts...)})
	}
	accept, drop := verdict(expr.VerdictAccept, ""), verdict(expr.VerdictDrop, "")
	rule(base, incoming(), []expr.Any{&expr.Lookup{SourceRegister: register, SetName: sets.ports.Name, SetID: sets.ports.ID}}, verdict(expr.VerdictJump, pod.Name))

	sender := concat(sets.own4, v4, field(expr.PayloadBaseNetworkHeader, arpSenderEther), field(expr.PayloadBaseNetworkHeader, arpSenderIP))
	rule(pod, frameOf(ethernetARP), equal(expr.PayloadBaseNetworkHeader, arpFormat, arpOverEther),
		source(sets.own4, v4, expr.PayloadBaseNetworkHeader, arpSenderIP), sender, accept)
	rule(pod, frameOf(etherIP4), icmp(unix.IPPROTO_ICMP, icmp4Redirect), drop)
	dhcp := func(kind, server, client string) {
		rule(pod, frameOf(kind), udp(udpSource, server), drop)
		rule(pod, frameOf(kind), udp(udpTarget, client), drop)
	}
	dhcp(etherIP4, dhcpServer, dhcpClient)
	rule(pod, frameOf(etherIP4), source(sets.own4, v4, expr.PayloadBaseNetworkHeader, ipv4Source), accept)
	dhcp(etherIP6, dhcp6Server, dhcp6Client)
	for _, kind := range []byte{icmp6Advertisement, icmp6Redirect} {
		rule(pod, frameOf(etherIP6), icmp(unix.IPPROTO_ICMPV6, kind), drop)
	}
	own := source(sets.own6, v6, expr.PayloadBaseNetworkHeader, ipv6Source)
	rule(pod, frameOf(etherIP6), icmp(unix.IPPROTO_ICMPV6, icmp6NeighborAnswer), own,
		source(sets.own6, v6, expr.PayloadBaseTransportHeader, neighborTarget), accept)
	rule(pod, frameOf(etherIP6), icmp(unix.IPPROTO_ICMPV6, icmp6NeighborAnswer), drop)
	rule(pod, frameOf(etherIP6), own, accept)
	rule(pod, drop)
}

// incoming loads the name of the device that a frame came in by.
func incoming() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register}}
}

// source looks up the device, the source of the frame and an address in the frame.
func source(set *nftables.Set, family int, base expr.PayloadBase, address uint32) []expr.Any {
	return concat(set, family, field(expr.PayloadBaseLLHeader, etherSource), field(base, address))
}

func field(base expr.PayloadBase, offset uint32) *expr.Payload {
	return &expr.Payload{Base: base, Offset: offset}
}

// concat looks up the device and two fields: a MAC address and one of a family.
func concat(set *nftables.Set, family int, ether, address *expr.Payload) []expr.Any {
	const word = 4 // bytes of a register
	_, layout := layer(family)
	ether.DestRegister, ether.Len = register+unix.IFNAMSIZ/word, etherLength
	address.DestRegister, address.Len = ether.DestRegister+2, layout.size
	return append(incoming(), ether, address, &expr.Lookup{SourceRegister: register, SetName: set.Name, SetID: set.ID})
}

// frameOf matches the type in the header of a frame.
func frameOf(kind string) []expr.Any {
	return equal(expr.PayloadBaseLLHeader, etherType, kind)
}

// icmp matches a type of message of ICMP or ICMPv6.
func icmp(protocol, kind byte) []expr.Any {
	return append(transport(protocol), equal(expr.PayloadBaseTransportHeader, icmpType, string([]byte{kind}))...)
}

// udp matches one of the two ports of a datagram.
func udp(offset uint32, port string) []expr.Any {
	return append(transport(unix.IPPROTO_UDP), equal(expr.PayloadBaseTransportHeader, offset, port)...)
}

// transport matches the protocol of a packet.
func transport(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{protocol}},
	}
}

func equal(base expr.PayloadBase, offset uint32, value string) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: uint32(len(value))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte(value)},
	}
}
