package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// attacker builds frames of a pod that claim to be another.
type attacker struct {
	mac, victim        net.HardwareAddr
	ip4, ip6, linkAddr netip.Addr
	gateway4, gateway6 netip.Addr
}

var (
	everyone  = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = netip.MustParseAddr("ff02::1")
	groupCast = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

func newAttacker(a, b connected) attacker {
	mac := hardwareAddress(a.Result.IPs[0])
	return attacker{
		mac: mac, victim: hardwareAddress(b.Result.IPs[0]), ip4: a.Result.IPs[0], ip6: a.Result.IPs[1], linkAddr: linkLocal(mac),
		gateway4: netip.MustParseAddr("10.85.0.1"), gateway6: netip.MustParseAddr("fd62:e7c4:1a85::1"),
	}
}

func ethernet(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	frame := append(append([]byte{}, to...), from...)
	return append(binary.BigEndian.AppendUint16(frame, kind), payload...)
}

func arp(operation byte, mac net.HardwareAddr, ip, target netip.Addr) []byte {
	packet := append([]byte{0, 1, 8, 0, 6, 4, 0, operation}, mac...)
	packet = append(append(packet, ip.AsSlice()...), make([]byte, 6)...)
	return append(packet, target.AsSlice()...)
}

func ipv6(from, to netip.Addr, next byte, payload []byte) []byte {
	packet := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), next, 255}
	return append(append(append(packet, from.AsSlice()...), to.AsSlice()...), payload...)
}

// icmpv6 adds the checksum (RFC 4443, section 2.3).
func icmpv6(from, to netip.Addr, message []byte) []byte {
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, 0, byte(len(message)>>8), byte(len(message)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(message[2:], checksum(append(pseudo, message...)))
	return ipv6(from, to, unix.IPPROTO_ICMPV6, message)
}

func checksum(data []byte) uint16 {
	if len(data)%2 == 1 {
		data = append(data, 0)
	}
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func ipv4(from, to netip.Addr, protocol byte, payload []byte) []byte {
	header := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 0, 0, 0, 64, protocol, 0, 0}
	header = append(append(header, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(header, payload...)
}

var broadcast = netip.MustParseAddr("255.255.255.255")

// datagram is an empty one without a checksum.
func datagram(from, to uint16) []byte {
	packet := binary.BigEndian.AppendUint16(nil, from)
	return append(binary.BigEndian.AppendUint16(packet, to), 0, 8, 0, 0)
}

// routerAdvertisement announces a default router and a prefix.
func routerAdvertisement() []byte {
	return []byte{
		134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0,
		3, 4, 64, 0xc0, 0, 0, 0x70, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0xba, 0xd0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	}
}

// neighbor is a message about an address, with a MAC address.
func neighbor(kind byte, target netip.Addr, option byte, mac net.HardwareAddr) []byte {
	message := append([]byte{kind, 0, 0, 0, 0x20, 0, 0, 0}, target.AsSlice()...)
	return append(append(message, option, 1), mac...)
}

// frames are what the host must not let through, by name.
func (a attacker) frames() map[string][]byte {
	advertisement := icmpv6(a.linkAddr, allNodes, routerAdvertisement())
	hidden := ipv6(a.linkAddr, allNodes, unix.IPPROTO_HOPOPTS, append([]byte{unix.IPPROTO_ICMPV6, 0, 1, 4, 0, 0, 0, 0}, advertisement[40:]...))
	redirect6 := append(append([]byte{137, 0, 0, 0, 0, 0, 0, 0}, a.linkAddr.AsSlice()...), a.gateway6.AsSlice()...)
	redirect4 := append([]byte{5, 1, 0, 0}, a.ip4.AsSlice()...)
	snap := append([]byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 6}, arp(2, a.mac, a.gateway4, a.ip4)...)
	elsewhere := netip.MustParseAddr("10.85.77.77")
	return map[string][]byte{
		"router advertisement":                     ethernet(groupCast, a.mac, 0x86dd, advertisement),
		"router advertisement behind an extension": ethernet(groupCast, a.mac, 0x86dd, hidden),
		"router advertisement in a tagged frame":   ethernet(groupCast, a.mac, 0x8100, append([]byte{0, 0, 0x86, 0xdd}, advertisement...)),
		"router advertisement of the gateway":      ethernet(groupCast, a.mac, 0x86dd, icmpv6(linkLocal(a.victim), allNodes, routerAdvertisement())),
		"redirect by ICMPv6":                       ethernet(a.victim, a.mac, 0x86dd, icmpv6(a.linkAddr, allNodes, redirect6)),
		"redirect by ICMP":                         ethernet(a.victim, a.mac, 0x0800, ipv4(a.ip4, elsewhere, 1, redirect4)),
		"ARP answer for the gateway":               ethernet(everyone, a.mac, 0x0806, arp(2, a.mac, a.gateway4, a.ip4)),
		"ARP request from the gateway":             ethernet(everyone, a.mac, 0x0806, arp(1, a.mac, a.gateway4, elsewhere)),
		"ARP answer with another MAC address":      ethernet(everyone, a.mac, 0x0806, arp(2, a.victim, a.ip4, elsewhere)),
		"ARP answer in a tagged frame":             ethernet(everyone, a.mac, 0x8100, append([]byte{0, 0, 8, 6}, arp(2, a.mac, a.gateway4, a.ip4)...)),
		"ARP answer in an 802.2 frame":             ethernet(everyone, a.mac, uint16(len(snap)), snap),
		"neighbor advertisement for the gateway":   ethernet(groupCast, a.mac, 0x86dd, icmpv6(a.ip6, allNodes, neighbor(136, a.gateway6, 2, a.mac))),
		"neighbor solicitation from the gateway":   ethernet(groupCast, a.mac, 0x86dd, icmpv6(a.gateway6, allNodes, neighbor(135, a.ip6, 1, a.mac))),
		"source address of another in IPv4":        ethernet(a.victim, a.mac, 0x0800, ipv4(elsewhere, a.ip4, 17, make([]byte, 8))),
		"source address of another in IPv6":        ethernet(a.victim, a.mac, 0x86dd, ipv6(a.gateway6, a.ip6, 17, make([]byte, 8))),
		"answer of a DHCP server":                  ethernet(everyone, a.mac, 0x0800, ipv4(a.ip4, broadcast, 17, datagram(67, 68))),
		"answer of a DHCP server from any port":    ethernet(a.victim, a.mac, 0x0800, ipv4(a.ip4, elsewhere, 17, datagram(4067, 68))),
		"message of a DHCP relay":                  ethernet(a.victim, a.mac, 0x0800, ipv4(a.ip4, elsewhere, 17, datagram(67, 67))),
		"answer of a DHCPv6 server":                ethernet(a.victim, a.mac, 0x86dd, ipv6(a.linkAddr, linkLocal(a.victim), 17, datagram(547, 546))),
		"answer of a DHCPv6 server from any port":  ethernet(a.victim, a.mac, 0x86dd, ipv6(a.ip6, linkLocal(a.victim), 17, datagram(4547, 546))),
		"MAC address of another":                   ethernet(everyone, a.victim, 0x0806, arp(1, a.mac, a.ip4, elsewhere)),
	}
}

// own are frames that a pod may send.
func (a attacker) own() map[string][]byte {
	return map[string][]byte{
		"ARP request":              ethernet(everyone, a.mac, 0x0806, arp(1, a.mac, a.ip4, a.gateway4)),
		"neighbor advertisement":   ethernet(groupCast, a.mac, 0x86dd, icmpv6(a.ip6, allNodes, neighbor(136, a.ip6, 2, a.mac))),
		"link-local packet":        ethernet(groupCast, a.mac, 0x86dd, icmpv6(a.linkAddr, allNodes, neighbor(135, a.gateway6, 1, a.mac))),
		"request of a DHCP client": ethernet(everyone, a.mac, 0x0800, ipv4(a.ip4, broadcast, 17, datagram(68, 67))),
		"IPv4 packet":              ethernet(a.victim, a.mac, 0x0800, ipv4(a.ip4, netip.MustParseAddr("10.85.0.9"), 17, make([]byte, 8))),
	}
}

// wire is a socket that sends and receives frames at the device of a pod.
func wire(t testing.TB, pod Pod) *os.File {
	t.Helper()
	var fd int
	inside(t, pod.NetNS, func() error {
		link, err := netlink.LinkByName(podDevice)
		if err != nil {
			return err
		}
		const every = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, every); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: link.Attrs().Index})
	})
	file := os.NewFile(uintptr(fd), "packet socket")
	t.Cleanup(func() { must(t, file.Close()) })
	return file
}

// awaitWire waits until a frame gets through: the kernel brings ports of a bridge up in the background.
func awaitWire(t testing.TB, from, to *os.File, frame []byte) {
	t.Helper()
	eventually(t, "a frame gets through", func() bool {
		_, err := from.Write(frame)
		must(t, err)
		must(t, to.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		for buffer := make([]byte, 4096); ; {
			n, err := to.Read(buffer)
			if err != nil || bytes.HasPrefix(buffer[:n], frame) {
				return err == nil
			}
		}
	})
}

// arrivals sends frames, and a last one that is always let through, and returns the names of those that have arrived before
// that one. Receivers see no VLAN tag, and with br_netfilter no padding.
func arrivals(t testing.TB, from, to *os.File, last []byte, frames map[string][]byte) map[string]bool {
	t.Helper()
	for _, frame := range frames {
		_, err := from.Write(frame)
		must(t, err)
	}
	end := append(bytes.Clone(last), "last"...)
	_, err := from.Write(end)
	must(t, err)
	must(t, to.SetReadDeadline(time.Now().Add(answerTime)))
	found := map[string]bool{}
	for buffer := make([]byte, 4096); ; {
		n, err := to.Read(buffer)
		if err != nil {
			t.Fatalf("the frame that is let through has not arrived: %v", err)
		}
		if bytes.Equal(buffer[:n], end) {
			return found
		}
		for name, frame := range frames {
			if binary.BigEndian.Uint16(frame[etherType:]) == 0x8100 {
				frame = slices.Delete(bytes.Clone(frame), etherType, etherType+4)
			}
			found[name] = found[name] || bytes.HasPrefix(buffer[:n], frame)
		}
	}
}

// A pod has every right over its own network namespace. Whatever it sends, other pods receive no frame by which it claims to
// be a router, or to have the address of another; and all that is its own.
func TestPodsCannotTakeAddresses(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.connect("a"), r.connect("b")
	attack := newAttacker(a, b)
	from, to := wire(t, a.Pod), wire(t, b.Pod)
	check := func(t *testing.T) {
		own := attack.own()
		awaitWire(t, from, to, own["ARP request"])
		received := arrivals(t, from, to, own["ARP request"], own)
		for name := range own {
			if !received[name] {
				t.Errorf("%s of the pod was dropped", name)
			}
		}
		for name, arrived := range arrivals(t, from, to, own["ARP request"], attack.frames()) {
			if arrived {
				t.Errorf("%s was let through", name)
			}
		}
	}
	t.Run("attached", check)
	t.Run("restart", func(t *testing.T) { r.restart(); check(t) })
	t.Run("flushed", func(t *testing.T) {
		must(t, exec.Command("nft", "flush", "ruleset").Run())
		must(t, r.Collect(t.Context(), map[string]bool{a.ID: true, b.ID: true}))
		check(t)
	})
	t.Run("neighbor leaves", func(t *testing.T) {
		c := r.connect("c")
		r.detach(c)
		r.settle()
		check(t)
	})
	if got := ruleset(t); !strings.Contains(got, vethName(a.ID)) {
		t.Errorf("pod a is not in the rules:\n%s", got)
	}
	r.detach(a)
	r.settle()
	if got := ruleset(t); strings.Contains(got, vethName(a.ID)) {
		t.Errorf("pod a is still in the rules:\n%s", got)
	}
}

// A pod takes no route from a router advertisement or a redirect, unless its sysctls ask for it.
func TestPodsIgnoreRouters(t *testing.T) {
	r := newRig(t, nil)
	a := r.connect("a")
	asking := r.pod("asking")
	asking.Sysctls = map[string]string{"net.ipv6.conf.eth0.accept_ra": "1", "net/ipv4/conf/all/accept_redirects": "1"}
	inside(t, asking.NetNS, func() error { return setSysctl("ipv4/conf/all/accept_redirects", "1") })
	plan, err := r.Plan(asking)
	must(t, err)
	t.Cleanup(func() { must(t, r.Detach(context.Background(), asking, plan)) })
	_, err = r.Attach(t.Context(), asking, plan)
	must(t, err)
	for _, device := range []string{"all", "default", podDevice} {
		for _, name := range []string{"ipv4/conf/%s/accept_redirects", "ipv6/conf/%s/accept_redirects", "ipv6/conf/%s/accept_ra"} {
			name = fmt.Sprintf(name, device)
			if got := sysctlIn(t, a.Pod, name); got != "0" {
				t.Errorf("%s is %s, want 0", name, got)
			}
			want := "0"
			if name == "ipv6/conf/eth0/accept_ra" || name == "ipv4/conf/all/accept_redirects" {
				want = "1"
			}
			if got := sysctlIn(t, asking, name); got != want {
				t.Errorf("%s of the pod that asks for it is %s, want %s", name, got, want)
			}
		}
	}
}

func sysctlIn(t testing.TB, pod Pod, name string) (value string) {
	t.Helper()
	inside(t, pod.NetNS, func() error {
		raw, err := os.ReadFile(filepath.Join(sysctlNet, name))
		value = strings.TrimSpace(string(raw))
		return err
	})
	return value
}
