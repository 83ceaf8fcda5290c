package network

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The subnets of the built-in network of a daemon with the default root, unless the configuration names others.
const (
	DefaultSubnet4 = "10.85.0.0/16"
	DefaultSubnet6 = "fd62:e7c4:1a85::/64"
)

const (
	// instanceRange is cut into pieces for the daemons with another root.
	instanceRange = "10.86.0.0/15"
	instanceBits  = 22
	// firstHost is the offset of the first pod in a subnet; 0 names the subnet, 1 is the bridge.
	firstHost = 2
	// maxHostBits bounds how much of a subnet is used. It keeps offsets small in IPv6.
	maxHostBits = 24
	ipv6Default = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
)

// subnets are those of the built-in network, at most one of each family, IPv4 first. The addresses of a pod have the same
// offset in both, so that one number stands for a pair.
type subnets []netip.Prefix

// parseSubnets validates configured subnets. The result is empty if none is configured, or just the defaults.
func parseSubnets(configured []string) (subnets, error) {
	if slices.Equal(configured, []string{DefaultSubnet4, DefaultSubnet6}) {
		return nil, nil
	}
	return parsePrefixes("builtin_subnet", configured)
}

// parsePrefixes validates the subnets of a field, at most one of each family.
func parsePrefixes(field string, texts []string) (subnets, error) {
	var nets subnets
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s %q: want such as %s: %w", field, text, DefaultSubnet4, errdefs.ErrInvalidArgument)
		case prefix != prefix.Masked():
			return nil, fmt.Errorf("%s %q: bits set after the prefix, want %s: %w", field, text, prefix.Masked(), errdefs.ErrInvalidArgument)
		case hostBits(prefix) < 3:
			return nil, fmt.Errorf("%s %q: too small for pods: %w", field, text, errdefs.ErrInvalidArgument)
		}
		for _, other := range nets {
			if other.Addr().Is4() == prefix.Addr().Is4() {
				return nil, fmt.Errorf("%s %q: second one of its family: %w", field, text, errdefs.ErrInvalidArgument)
			}
		}
		nets = append(nets, prefix)
	}
	slices.SortFunc(nets, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	return nets, nil
}

func hostBits(p netip.Prefix) int {
	return p.Addr().BitLen() - p.Bits()
}

// at returns the addresses at an offset, each with the length of its subnet.
func (s subnets) at(offset uint32) []netip.Prefix {
	addresses := make([]netip.Prefix, len(s))
	for i, prefix := range s {
		raw := prefix.Addr().AsSlice()
		last := raw[len(raw)-4:]
		binary.BigEndian.PutUint32(last, binary.BigEndian.Uint32(last)|offset)
		address, _ := netip.AddrFromSlice(raw)
		addresses[i] = netip.PrefixFrom(address, prefix.Bits())
	}
	return addresses
}

// gateways returns the addresses of the bridge.
func (s subnets) gateways() []netip.Prefix {
	return s.at(1)
}

// offsetOf is the inverse of at, as far as offsets go.
func offsetOf(address netip.Prefix) uint32 {
	raw := address.Addr().AsSlice()
	bits := min(hostBits(address), maxHostBits)
	return binary.BigEndian.Uint32(raw[len(raw)-4:]) & (1<<bits - 1)
}

// free finds the next offset after a given one of which no address is taken, round and round.
func (s subnets) free(after uint32, taken func(netip.Addr) bool) (uint32, error) {
	bits := maxHostBits
	for _, prefix := range s {
		bits = min(bits, hostBits(prefix))
	}
	end := uint32(1)<<bits - 1 // the last one is the broadcast address in IPv4
	offset := after
	for range end - firstHost {
		if offset++; offset < firstHost || offset >= end {
			offset = firstHost
		}
		if !slices.ContainsFunc(s.at(offset), func(p netip.Prefix) bool { return taken(p.Addr()) }) {
			return offset, nil
		}
	}
	return 0, fmt.Errorf("no free address in %v: all %d are in use: %w", []netip.Prefix(s), end-firstHost, errdefs.ErrResourceExhausted)
}

// defaultSubnets chooses subnets for an instance: the plain one has the known ones, any other a piece of a range that
// overlaps no address and no route of the host but those of its own bridge.
func defaultSubnets(instance, bridge string) (subnets, error) {
	nets := subnets{netip.MustParsePrefix(DefaultSubnet4)}
	sum := sha256.Sum256([]byte(instance))
	if instance != "" {
		chosen, err := freePiece(binary.BigEndian.Uint32(sum[:]), bridge)
		if err != nil {
			return nil, err
		}
		nets[0] = chosen
	}
	if disabled, err := os.ReadFile(ipv6Default); errors.Is(err, os.ErrNotExist) || err == nil && bytes.HasPrefix(disabled, []byte("1")) {
		return nets, nil // a host without IPv6
	} else if err != nil {
		return nil, fmt.Errorf("look whether the host has IPv6: %w", err)
	}
	if instance == "" {
		return append(nets, netip.MustParsePrefix(DefaultSubnet6)), nil
	}
	// RFC 4193: fd, a global ID of 40 bits that is as good as random, a subnet ID of 16 bits.
	var raw [16]byte
	raw[0] = 0xfd
	copy(raw[1:8], sum[4:])
	return append(nets, netip.PrefixFrom(netip.AddrFrom16(raw), 64)), nil
}

func freePiece(seed uint32, bridge string) (netip.Prefix, error) {
	used, err := routedPrefixes(bridge)
	if err != nil {
		return netip.Prefix{}, err
	}
	whole := netip.MustParsePrefix(instanceRange)
	pieces := uint32(1) << (instanceBits - whole.Bits())
	base := whole.Addr().As4()
	for i := range pieces {
		var raw [4]byte
		offset := (seed + i) % pieces << (32 - instanceBits)
		binary.BigEndian.PutUint32(raw[:], binary.BigEndian.Uint32(base[:])|offset)
		piece := netip.PrefixFrom(netip.AddrFrom4(raw), instanceBits)
		if !slices.ContainsFunc(used, piece.Overlaps) {
			return piece, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no free subnet in %s, configure network.builtin_subnet: %w", instanceRange, errdefs.ErrResourceExhausted)
}

// routedPrefixes lists what the host reaches in IPv4 other than by default and over the given bridge.
func routedPrefixes(bridge string) ([]netip.Prefix, error) {
	own := -1
	link, err := netlink.LinkByName(bridge)
	if err == nil {
		own = link.Attrs().Index
	} else if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("look up bridge %s: %w", bridge, err)
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var used []netip.Prefix
	for _, route := range routes {
		if route.Dst == nil || route.LinkIndex == own {
			continue
		}
		address, _ := netip.AddrFromSlice(route.Dst.IP.To4())
		if ones, _ := route.Dst.Mask.Size(); address.IsValid() && ones > 0 {
			used = append(used, netip.PrefixFrom(address, ones))
		}
	}
	return used, nil
}
