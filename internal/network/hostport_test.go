package network

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/namespace"
)

// Host ports answer to the host, the outside, a neighbour and the pod itself, at every address and at loopback, whether
// bridged frames go through the packet filter or not. With br_netfilter the kernel allows no answer to [::1], and the
// connection is refused at once; so is a port that would answer there only.
func TestBuiltinHostPorts(t *testing.T) {
	for _, filter := range []string{"0", "1"} {
		t.Run("BridgeFilter"+filter, func(t *testing.T) {
			filterBridges(t, filter)
			r := newRig(t, nil)
			a := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080}, PortMapping{Protocol: "UDP", ContainerPort: 53, HostPort: 5353})
			b := r.connect("b")
			serve(t, a.Pod, "tcp", 80)
			serve(t, a.Pod, "udp", 53)
			for _, netns := range []string{"", outsideNetNS, b.NetNS, a.NetNS} {
				for _, address := range hostAddresses {
					expect(t, netns, "tcp", at(address.Addr(), 8080), "a")
					expect(t, netns, "udp", at(address.Addr(), 5353), "a")
				}
			}
			client := expect(t, outsideNetNS, "tcp", at(hostAddresses[0].Addr(), 8080), "a")
			if client != outsideAddresses[0].Addr().String() {
				t.Errorf("the pod sees the outside as %s", client)
			}
			expect(t, "", "tcp", "127.0.0.1:8080", "a")
			expect(t, "", "udp", "127.0.0.1:5353", "a")
			if filter == "1" {
				if _, _, err := ask("", "tcp", "[::1]:8080"); err == nil || !strings.Contains(err.Error(), "refused") {
					t.Errorf("[::1] with br_netfilter: %v, want refused", err)
				}
				only := r.pod("only", PortMapping{ContainerPort: 80, HostPort: 8081, HostIP: "::1"})
				if _, err := r.Attach(t.Context(), only, a.Plan); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `host_ip "::1"`) {
					t.Errorf("a port of ::1 alone: %v, want that host_ip is refused", err)
				}
				return
			}
			expect(t, "", "tcp", "[::1]:8080", "a")
			expect(t, "", "udp", "[::1]:5353", "a")
		})
	}
}

// A host port with a host IP answers there only.
func TestBuiltinHostIP(t *testing.T) {
	filterBridges(t, "0")
	r := newRig(t, nil)
	a := r.connect("a",
		PortMapping{ContainerPort: 80, HostPort: 8001, HostIP: "127.0.0.1"},
		PortMapping{ContainerPort: 80, HostPort: 8002, HostIP: hostAddresses[0].Addr().String()},
		PortMapping{ContainerPort: 80, HostPort: 8003, HostIP: "0.0.0.0"},
		PortMapping{ContainerPort: 80, HostPort: 8004, HostIP: "::"},
		PortMapping{ContainerPort: 80, HostPort: 8005, HostIP: "::1"})
	serve(t, a.Pod, "tcp", 80)
	four, six := hostAddresses[0].Addr().String(), hostAddresses[1].Addr().String()
	answering := map[int][]string{8001: {"127.0.0.1"}, 8002: {four}, 8003: {"127.0.0.1", four}, 8004: {"::1", six}, 8005: {"::1"}}
	for port, addresses := range answering {
		for _, address := range []string{"127.0.0.1", "::1", four, six} {
			_, server, err := ask("", "tcp", at(address, port))
			want := false
			for _, a := range addresses {
				want = want || a == address
			}
			if (server == "a") != want {
				t.Errorf("%s answers: %t (%v), want %t", at(address, port), server == "a", err, want)
			}
		}
	}
	if _, _, err := ask(outsideNetNS, "tcp", at(four, 8001)); err == nil {
		t.Error("a port of 127.0.0.1 answers to the outside")
	}
}

// A host port in use is refused, the error names the pod, and nothing is left of the one that came second. Ports
// of other addresses, protocols and families are no conflict.
func TestHostPortConflicts(t *testing.T) {
	r := newRig(t, nil)
	r.connect("first", PortMapping{ContainerPort: 80, HostPort: 8080}, PortMapping{ContainerPort: 80, HostPort: 8081, HostIP: "127.0.0.1"})
	for _, mapping := range []PortMapping{
		{ContainerPort: 1, HostPort: 8080}, {ContainerPort: 1, HostPort: 8080, HostIP: "192.0.2.2"}, {ContainerPort: 1, HostPort: 8080, HostIP: "::"},
		{ContainerPort: 1, HostPort: 8081}, {ContainerPort: 1, HostPort: 8081, HostIP: "0.0.0.0"}, {ContainerPort: 1, HostPort: 8081, HostIP: "127.0.0.1"},
	} {
		before := hostState(t)
		pod := r.pod("second", mapping)
		plan, err := r.Plan(pod)
		must(t, err)
		_, err = r.Attach(t.Context(), pod, plan)
		if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "test/first") || !strings.Contains(err.Error(), fmt.Sprint(mapping.HostPort)) {
			t.Errorf("%+v: got %v", mapping, err)
		}
		r.settle()
		if after := hostState(t); after != before {
			t.Errorf("%+v: left on the host:\n%s", mapping, after)
		}
		must(t, namespace.Remove(t.Context(), filepath.Dir(pod.NetNS)))
	}
	for i, mapping := range []PortMapping{
		{ContainerPort: 1, HostPort: 8080, Protocol: "udp"}, {ContainerPort: 1, HostPort: 8080, Protocol: "SCTP"},
		{ContainerPort: 1, HostPort: 8081, HostIP: "192.0.2.2"}, {ContainerPort: 1, HostPort: 8081, HostIP: "::"},
	} {
		r.connect(fmt.Sprint("other", i), mapping)
	}
}

// A UDP client that spoke to a pod goes on with its successor on the same host port.
func TestUDPFollowsThePort(t *testing.T) {
	r := newRig(t, nil)
	mapping := PortMapping{Protocol: "udp", ContainerPort: 53, HostPort: 5353}
	a := r.connect("a", mapping)
	serve(t, a.Pod, "udp", 53)
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 50505}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5353})
	must(t, err)
	defer conn.Close()
	say := func() string {
		must(t, conn.SetDeadline(deadline()))
		_, err := conn.Write([]byte("who"))
		must(t, err)
		answer := make([]byte, 100)
		n, err := conn.Read(answer)
		must(t, err)
		return strings.TrimSpace(string(answer[:n]))
	}
	if got := say(); !strings.HasSuffix(got, " a") {
		t.Errorf("answer %q", got)
	}
	r.detach(a)
	b := r.connect("b", mapping)
	serve(t, b.Pod, "udp", 53)
	if got := say(); !strings.HasSuffix(got, " b") {
		t.Errorf("answer %q", got)
	}
}

// Our host ports serve networks of any shape: here each pod has a device of its own on the host.
func TestHostPortsOfPointToPointNetwork(t *testing.T) {
	r := withList(t, `{"cniVersion": "0.4.0", "name": "mynet", "plugins": [{"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local",
		"ranges": [[{"subnet": "10.22.0.0/16"}], [{"subnet": "fd22::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]}`, nil)
	filterBridges(t, "0")
	a, b := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080}), r.connect("b")
	serve(t, a.Pod, "tcp", 80)
	for _, address := range []any{"127.0.0.1", "::1", hostAddresses[0].Addr(), hostAddresses[1].Addr()} {
		expect(t, "", "tcp", at(address, 8080), "a")
	}
	for _, netns := range []string{outsideNetNS, b.NetNS, a.NetNS} {
		expect(t, netns, "tcp", at(hostAddresses[0].Addr(), 8080), "a")
	}
	must(t, namespace.Remove(t.Context(), filepath.Dir(b.NetNS)))
	r.detach(b)
}
