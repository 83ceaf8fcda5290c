package network

import (
	"fmt"
	"net"
	"testing"
)

// Pods reach each other, the host and the outside, and the host reaches them, by IPv4 and IPv6.
func TestBuiltinReachability(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.connect("a"), r.connect("b")
	if len(a.Result.IPs) != 2 || !a.Result.IPs[0].Is4() || !a.Result.IPs[1].Is6() {
		t.Fatalf("addresses %v, want IPv4 and IPv6", a.Result.IPs)
	}
	serve(t, a.Pod, "tcp", 80)
	for _, ip := range a.Result.IPs {
		address := net.JoinHostPort(ip.String(), "80")
		expect(t, "", "tcp", address, "a")
		if client := expect(t, b.NetNS, "tcp", address, "a"); client != b.Result.IPs[0].String() && client != b.Result.IPs[1].String() {
			t.Errorf("pod b is seen as %s", client)
		}
	}
	serve(t, Pod{NetNS: outsideNetNS, Name: "outside"}, "tcp", 81)
	for i, outside := range outsideAddresses {
		client := expect(t, a.NetNS, "tcp", net.JoinHostPort(outside.Addr().String(), "81"), "outside")
		if want := hostAddresses[i].Addr().String(); client != want {
			t.Errorf("outside sees %s, want the host's %s", client, want)
		}
	}
	fmt.Println(ruleset(t))
	_ = b
}

func TestBuiltinHostPorts(t *testing.T) {
	r := newRig(t, nil)
	a := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080}, PortMapping{Protocol: "UDP", ContainerPort: 53, HostPort: 5353})
	b := r.connect("b")
	serve(t, a.Pod, "tcp", 80)
	serve(t, a.Pod, "udp", 53)
	fmt.Println(ruleset(t))
	for name, netns := range map[string]string{"host": "", "outside": outsideNetNS, "neighbour": b.NetNS, "itself": a.NetNS} {
		for _, address := range hostAddresses {
			t.Log(name, address)
			expect(t, netns, "tcp", net.JoinHostPort(address.Addr().String(), "8080"), "a")
			expect(t, netns, "udp", net.JoinHostPort(address.Addr().String(), "5353"), "a")
		}
	}
	for _, address := range []string{"127.0.0.1", "::1"} {
		t.Log(address)
		expect(t, "", "tcp", net.JoinHostPort(address, "8080"), "a")
		expect(t, "", "udp", net.JoinHostPort(address, "5353"), "a")
	}
}
