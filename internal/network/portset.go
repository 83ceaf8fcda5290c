package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// portSets are the sets of the table, for IPv4 and IPv6. An element carries the pod's ID as its comment.
//
//	exact:  address . protocol . host port            -> pod address . container port
//	any:    protocol . host port                      -> pod address . container port
//	local:  client . pod . protocol . container port . host port
//
// local tells which translated connections must be masqueraded too: those whose answer would not come back this way, as the
// client is the host itself at its loopback address, or a neighbour of the pod. The original port is part of it so that a
// connection that another program translated (a Kubernetes service, say) keeps its source.
type portSets struct {
	exact, any, local [2]*nftables.Set
}

// Indexes into the arrays of portSets.
const (
	v4 = iota
	v6
)

func newPortSets(table *nftables.Table) *portSets {
	sets := &portSets{}
	for family, address := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr} {
		suffix := string("46"[family])
		target := nftables.MustConcatSetType(address, nftables.TypeInetService)
		sets.exact[family] = &nftables.Set{
			Table: table, Name: "exact" + suffix, ID: uint32(3*family + 1), IsMap: true, Concatenation: true, DataType: target,
			KeyType: nftables.MustConcatSetType(address, nftables.TypeInetProto, nftables.TypeInetService),
		}
		sets.any[family] = &nftables.Set{
			Table: table, Name: "any" + suffix, ID: uint32(3*family + 2), IsMap: true, Concatenation: true, DataType: target,
			KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		}
		sets.local[family] = &nftables.Set{
			Table: table, Name: "local" + suffix, ID: uint32(3*family + 3), Interval: true, Concatenation: true,
			KeyType: nftables.MustConcatSetType(address, address, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeInetService),
		}
	}
	return sets
}

func (s *portSets) create(conn *nftables.Conn) error {
	for family := range s.any {
		for _, set := range []*nftables.Set{s.exact[family], s.any[family], s.local[family]} {
			if err := conn.AddSet(set, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// each calls apply for the elements of a published lease, set by set, in bites that fit into a message.
func (s *portSets) each(l *lease, apply func(*nftables.Set, []nftables.SetElement) error) error {
	if !l.Published {
		return nil
	}
	elements := map[*nftables.Set][]nftables.SetElement{}
	seen := map[string]bool{}
	add := func(set *nftables.Set, e nftables.SetElement) {
		if id := set.Name + string(e.Key); !seen[id] {
			seen[id] = true
			e.Comment = l.ID
			elements[set] = append(elements[set], e)
		}
	}
	for _, pod := range primaries(l.Addresses) {
		for _, p := range l.Ports {
			if p.serves(pod.Addr()) {
				s.elementsOf(pod, p, add)
			}
		}
	}
	for set, all := range elements {
		for len(all) > 0 {
			n := min(len(all), maxElements)
			if err := apply(set, all[:n]); err != nil {
				return err
			}
			all = all[n:]
		}
	}
	return nil
}

// elementsOf makes the elements for one port at one address of a pod.
func (s *portSets) elementsOf(pod netip.Prefix, p port, add func(*nftables.Set, nftables.SetElement)) {
	family, loopback := v4, loopback4
	if pod.Addr().Is6() {
		family, loopback = v6, loopback6
	}
	protocol := []byte{map[string]byte{TCP: unix.IPPROTO_TCP, UDP: unix.IPPROTO_UDP, SCTP: unix.IPPROTO_SCTP}[p.Protocol]}
	host, container := number(p.Host), number(p.Container)
	target := join(pod.Addr().AsSlice(), container)
	if p.Address.IsValid() && !p.Address.IsUnspecified() {
		add(s.exact[family], nftables.SetElement{Key: join(p.Address.AsSlice(), protocol, host), Val: target})
	} else {
		add(s.any[family], nftables.SetElement{Key: join(protocol, host), Val: target})
	}
	rest := join(pod.Addr().AsSlice(), protocol, container, host)
	for _, clients := range []netip.Prefix{loopback, pod.Masked()} {
		add(s.local[family], nftables.SetElement{
			Key:    join(clients.Masked().Addr().AsSlice(), rest),
			KeyEnd: join(last(clients).AsSlice(), rest),
		})
	}
}

// primaries returns the first address of each family.
func primaries(addresses []netip.Prefix) []netip.Prefix {
	var first []netip.Prefix
	for _, a := range addresses {
		if len(first) == 0 || len(first) == 1 && first[0].Addr().Is4() != a.Addr().Is4() {
			first = append(first, a)
		}
	}
	return first
}

// last returns the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	raw := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	address, _ := netip.AddrFromSlice(raw)
	return address
}

// join concatenates the fields of a key as the kernel's registers do, each filled up to 32 bits.
func join(fields ...[]byte) []byte {
	var key []byte
	for _, field := range fields {
		key = append(key, field...)
		for len(key)%4 != 0 {
			key = append(key, 0)
		}
	}
	return key
}

func number(port uint16) []byte {
	return binary.BigEndian.AppendUint16(nil, port)
}
