package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	// register is the first of sixteen registers of 32 bits (NFT_REG32_00); a concatenation fills them in order.
	register = 8
	// loopbackName is compared with the name of the device that a packet came in by.
	loopbackName = "lo"
	// dstNAT is IPS_DST_NAT of enum ip_conntrack_status.
	dstNAT = 1 << 5
)

// Offsets of fields in their headers.
const (
	ipv4Source, ipv4Destination = 12, 16
	ipv6Source, ipv6Destination = 8, 24
	destinationPort             = 2
)

// addRules writes the chains:
//
//	guard        prerouting, raw   not from lo, to 127.0.0.0/8: drop
//	prerouting   nat               to an address of this host: jump ports
//	output       nat               to an address of this host: jump ports (but not to ::1 with br_netfilter)
//	ports                          dnat to the pod that has the port, at this address or at any
//	postrouting  nat               translated by us, in local: masquerade; from a pod to outside: masquerade
//
// The guard is the other half of route_localnet, which a bridge needs so that a port of 127.0.0.1 can be answered by a pod:
// without the guard pods could send to services that listen on the host's loopback only (CVE-2020-8558). It sees packets
// before answers are translated back, so it meets nothing legitimate.
func addRules(conn *nftables.Conn, table *nftables.Table, sets *portSets, bridge string, masqueraded []netip.Prefix) {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: priority})
	}
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		var exprs []expr.Any
		for _, part := range parts {
			exprs = append(exprs, part...)
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	}
	ports := conn.AddChain(&nftables.Chain{Name: "ports", Table: table})
	guard := base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	in := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	post := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)

	rule(guard, device(expr.MetaKeyIIFNAME, loopbackName, expr.CmpOpNeq), within(loopback4, ipv4Destination, expr.CmpOpEq), verdict(expr.VerdictDrop, ""))
	rule(in, toThisHost(), verdict(expr.VerdictJump, ports.Name))
	if bridgeFilters6() {
		// It would get no answer. Refused at once, clients try 127.0.0.1.
		rule(out, within(loopback6, ipv6Destination, expr.CmpOpEq), verdict(expr.VerdictReturn, ""))
	}
	rule(out, toThisHost(), verdict(expr.VerdictJump, ports.Name))
	for family := range sets.any {
		proto, address := layer(family)
		rule(ports, proto, load(address.destination, address.size, register), protocolAndPort(register+address.registers), dnat(sets.exact[family], family))
		rule(ports, proto, protocolAndPort(register), dnat(sets.any[family], family))
		rule(post, proto, translated(), local(sets.local[family], address), masquerade())
	}
	for _, net := range masqueraded {
		source, destination := uint32(ipv4Source), uint32(ipv4Destination)
		if net.Addr().Is6() {
			source, destination = ipv6Source, ipv6Destination
		}
		rule(post, within(net, source, expr.CmpOpEq), within(net, destination, expr.CmpOpNeq), device(expr.MetaKeyOIFNAME, bridge, expr.CmpOpNeq), masquerade())
	}
}

// addressLayout says where the addresses of a protocol are and how many registers one takes.
type addressLayout struct {
	source, destination, size, registers uint32
}

func layer(family int) ([]expr.Any, addressLayout) {
	proto, layout := byte(unix.NFPROTO_IPV4), addressLayout{ipv4Source, ipv4Destination, 4, 1}
	if family == v6 {
		proto, layout = unix.NFPROTO_IPV6, addressLayout{ipv6Source, ipv6Destination, 16, 4}
	}
	return ipProtocol(proto), layout
}

func ipProtocol(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{proto}},
	}
}

// device matches the name of the device that a packet came in or goes out by.
func device(key expr.MetaKey, name string, op expr.CmpOp) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: register}, &expr.Cmp{Op: op, Register: register, Data: padded}}
}

// within matches an address of the network header against a prefix, and the protocol that the prefix is of.
func within(net netip.Prefix, offset uint32, op expr.CmpOp) []expr.Any {
	family := v4
	if net.Addr().Is6() {
		family = v6
	}
	proto, layout := layer(family)
	mask := make([]byte, layout.size)
	for bit := range net.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	return append(proto,
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: layout.size},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: layout.size, Mask: mask, Xor: make([]byte, layout.size)},
		&expr.Cmp{Op: op, Register: register, Data: net.Masked().Addr().AsSlice()},
	)
}

func toThisHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: register, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func load(offset, size, into uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: into, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}}
}

// protocolAndPort loads the transport protocol and its destination port into two registers.
func protocolAndPort(into uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: into},
		&expr.Payload{DestRegister: into + 1, Base: expr.PayloadBaseTransportHeader, Offset: destinationPort, Len: 2},
	}
}

// dnat looks the loaded key up and translates the destination to what the map says; without a match the rule ends.
func dnat(set *nftables.Set, family int) []expr.Any {
	proto, registers := uint32(unix.NFPROTO_IPV4), uint32(1)
	if family == v6 {
		proto, registers = unix.NFPROTO_IPV6, 4
	}
	return []expr.Any{
		&expr.Lookup{SourceRegister: register, DestRegister: register, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: proto, RegAddrMin: register, RegProtoMin: register + registers, Specified: true},
	}
}

// translated matches connections whose destination was changed, by whomever.
func translated() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: register},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: make([]byte, 4)},
	}
}

// local matches client, pod, protocol, container port and host port.
func local(set *nftables.Set, address addressLayout) []expr.Any {
	parts := load(address.source, address.size, register)
	parts = append(parts, load(address.destination, address.size, register+address.registers)...)
	parts = append(parts, protocolAndPort(register+2*address.registers)...)
	return append(parts,
		&expr.Ct{Key: expr.CtKeyPROTODST, Direction: 0, Register: register + 2*address.registers + 2},
		&expr.Lookup{SourceRegister: register, SetName: set.Name, SetID: set.ID},
	)
}

func masquerade() []expr.Any {
	return []expr.Any{&expr.Masq{}}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
