package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/internal/namespace"
)

func at(address any, port int) string {
	return net.JoinHostPort(fmt.Sprint(address), fmt.Sprint(port))
}

// Pods reach each other, the host and the outside, and the host reaches them, by IPv4 and IPv6. The outside sees the host.
func TestBuiltinReachability(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.connect("a"), r.connect("b")
	if ips := a.Result.IPs; len(ips) != 2 || !ips[0].Is4() || !ips[1].Is6() {
		t.Fatalf("addresses %v, want IPv4 and IPv6", ips)
	}
	outside := Pod{NetNS: outsideNetNS, Name: "outside"}
	serve(t, a.Pod, "tcp", 80)
	serve(t, outside, "tcp", 81)
	serve(t, Pod{NetNS: "/proc/self/ns/net", Name: "host"}, "tcp", 82)
	for i, ip := range a.Result.IPs {
		expect(t, "", "tcp", at(ip, 80), "a")
		if client := expect(t, b.NetNS, "tcp", at(ip, 80), "a"); client != b.Result.IPs[i].String() {
			t.Errorf("pod a sees pod b as %s, want %s", client, b.Result.IPs[i])
		}
		if client := expect(t, a.NetNS, "tcp", at(outsideAddresses[i].Addr(), 81), "outside"); client != hostAddresses[i].Addr().String() {
			t.Errorf("outside sees %s, want the host's %s", client, hostAddresses[i].Addr())
		}
		if client := expect(t, a.NetNS, "tcp", at(hostAddresses[i].Addr(), 82), "host"); client != ip.String() {
			t.Errorf("the host sees %s, want the pod's %s", client, ip)
		}
	}
	if !strings.Contains(string(a.Result.Raw), a.Result.IPs[0].String()) {
		t.Errorf("raw result %s lacks the address", a.Result.Raw)
	}
}

// Pods must not reach what listens at the host's loopback address only, although the bridge routes it (CVE-2020-8558).
func TestPodsCannotReachHostLoopback(t *testing.T) {
	r := newRig(t, nil)
	a := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	gateway := netip.MustParseAddr("10.85.0.1")
	inside(t, a.NetNS, func() error {
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		must(t, netlink.LinkSetDown(lo))
		eth0, err := netlink.LinkByName(podDevice)
		must(t, err)
		must(t, writeFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1"))
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(loopback4), Gw: gateway.AsSlice()}))
		return nil
	})
	connected := make(chan struct{})
	go func() {
		if conn, err := listener.Accept(); err == nil {
			close(connected)
			_ = conn.Close()
		}
	}()
	err = namespace.Do(a.NetNS, func() error {
		conn, err := net.DialTimeout("tcp", at("127.0.0.1", port), time.Second)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	select {
	case <-connected:
		t.Error("the pod reached the host's loopback address")
	default:
	}
	if err == nil {
		t.Error("no error")
	}
}

func writeFile(name, value string) error {
	return os.WriteFile(name, []byte(value), 0)
}

func TestPodsAreValidated(t *testing.T) {
	r := newRig(t, nil)
	good := r.pod("good")
	cases := map[string]struct {
		change func(*Pod)
		names  string
	}{
		"NoID":          {func(p *Pod) { p.ID = "" }, "pod ID"},
		"PathID":        {func(p *Pod) { p.ID = "../x" }, "../x"},
		"LongID":        {func(p *Pod) { p.ID = strings.Repeat("x", 200) }, "xxx"},
		"RelativeNetNS": {func(p *Pod) { p.NetNS = "net" }, "net"},
		"Protocol":      {func(p *Pod) { p.PortMappings[0].Protocol = "icmp" }, "icmp"},
		"HostPort":      {func(p *Pod) { p.PortMappings[0].HostPort = 65536 }, "65536"},
		"NegativePort":  {func(p *Pod) { p.PortMappings[0].HostPort = -1 }, "-1"},
		"ContainerPort": {func(p *Pod) { p.PortMappings[0].ContainerPort = 0 }, "container_port"},
		"HostIP":        {func(p *Pod) { p.PortMappings[0].HostIP = "host" }, "host_ip host"},
		"Zone":          {func(p *Pod) { p.PortMappings[0].HostIP = "fe80::1%lo" }, "fe80::1%lo"},
		"Twice": {func(p *Pod) {
			p.PortMappings = append(p.PortMappings, PortMapping{ContainerPort: 81, HostPort: 8080, HostIP: "127.0.0.1"})
		}, "port_mappings[1]"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			pod := good
			pod.PortMappings = []PortMapping{{ContainerPort: 80, HostPort: 8080}}
			c.change(&pod)
			for what, err := range map[string]error{"Plan": second(r.Plan(pod)), "Attach": second(r.Attach(t.Context(), pod, Plan{Kind: Builtin}))} {
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.names) {
					t.Errorf("%s = %v, want invalid argument that names %s", what, err, c.names)
				}
			}
		})
	}
	pod := good
	pod.PortMappings = []PortMapping{{ContainerPort: 80}, {HostPort: 8080, ContainerPort: 80}, {HostPort: 8080, ContainerPort: 80, Protocol: "TCP"}}
	if _, err := r.Plan(pod); err != nil {
		t.Errorf("no host port, and one twice with the same meaning: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A pod without its namespace is refused, and so is a port for a family that the pod has no address of.
func TestAttachFailuresLeaveNothing(t *testing.T) {
	r := newRig(t, func(o *Options) { o.BuiltinSubnet = []string{"10.99.0.0/24"} })
	keep := r.connect("keep") // so that the bridge is there before
	before := hostState(t)
	pod := r.pod("six", PortMapping{ContainerPort: 80, HostPort: 8080, HostIP: "::1"})
	_, err := r.Attach(t.Context(), pod, keep.Plan)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `host_ip "::1" of host port 8080/tcp: the pod has no IPv6 address`) {
		t.Errorf("IPv6 port of an IPv4 pod: %v", err)
	}
	must(t, namespace.Remove(t.Context(), filepath.Dir(pod.NetNS)))
	if _, err := r.Attach(t.Context(), pod, keep.Plan); !errdefs.IsNotFound(err) {
		t.Errorf("namespace gone: %v", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Attach(canceled, r.pod("late"), keep.Plan); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	r.settle()
	if after := hostState(t); after != before {
		t.Errorf("left on the host:\n%s", after)
	}
	if held := r.leases.all(); len(held) != 1 {
		t.Errorf("%d leases, want that of the first pod", len(held))
	}
}

// Addresses are never given twice, also by many at once, and come back when all are used.
func TestAddressesAreExhaustedAndReturned(t *testing.T) {
	r := newRig(t, func(o *Options) { o.BuiltinSubnet = []string{"10.98.0.0/28", "fd98::/64"} })
	const hosts = 13 // 16 less network, bridge and broadcast
	var wait sync.WaitGroup
	var mu sync.Mutex
	given := map[netip.Addr]string{}
	pods := make([]Pod, hosts)
	for i := range pods {
		pods[i] = r.pod(fmt.Sprint("pod", i))
		wait.Go(func() {
			result, err := r.Attach(t.Context(), pods[i], Plan{Kind: Builtin})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, ip := range result.IPs {
				if given[ip] != "" {
					t.Errorf("%s has the address %s of %s", pods[i], ip, given[ip])
				}
				given[ip] = pods[i].Name
			}
		})
	}
	wait.Wait()
	if len(given) != 2*hosts {
		t.Errorf("%d addresses, want %d", len(given), 2*hosts)
	}
	extra := r.pod("extra")
	if _, err := r.Attach(t.Context(), extra, Plan{Kind: Builtin}); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "10.98.0.0/28") {
		t.Errorf("one too many: %v", err)
	}
	if err := r.Ready(); err != nil {
		t.Errorf("one pod too many makes the node not ready: %v", err)
	}
	must(t, r.Detach(t.Context(), pods[3], Plan{Kind: Builtin}))
	result, err := r.Attach(t.Context(), extra, Plan{Kind: Builtin})
	if err != nil {
		t.Fatal(err)
	}
	if was := given[result.IPs[0]]; was != pods[3].Name {
		t.Errorf("got %s of %q, want that of %s", result.IPs[0], was, pods[3])
	}
	for _, pod := range slices.Concat(pods, []Pod{extra}) {
		must(t, r.Detach(t.Context(), pod, Plan{Kind: Builtin}))
	}
	r.settle()
	if held := r.leases.all(); len(held) != 0 || len(r.leases.owners) != 0 {
		t.Errorf("%d leases and %d addresses are left", len(held), len(r.leases.owners))
	}
}

// Detach works again and again, without the namespace, and of a pod that was never attached or only planned.
func TestDetachIsIdempotent(t *testing.T) {
	r := newRig(t, nil)
	a := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080})
	must(t, namespace.Remove(t.Context(), filepath.Dir(a.NetNS)))
	for range 3 {
		r.detach(a)
	}
	if strings.Contains(ruleset(t), "8080") {
		t.Error("the host port is still open")
	}
	must(t, r.Detach(t.Context(), r.pod("planned"), a.Plan))
	must(t, r.Detach(t.Context(), r.pod("unplanned"), Plan{}))
}

// Attach after an interrupted Attach gives the same addresses and works.
func TestAttachAgain(t *testing.T) {
	r := newRig(t, nil)
	a := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080})
	r.connect("b")
	again, err := r.Attach(t.Context(), a.Pod, a.Plan)
	must(t, err)
	if fmt.Sprint(again.IPs) != fmt.Sprint(a.Result.IPs) {
		t.Errorf("addresses %v, want %v as before", again.IPs, a.Result.IPs)
	}
	serve(t, a.Pod, "tcp", 80)
	expect(t, "", "tcp", "127.0.0.1:8080", "a")
}

// A pod that switches IPv6 off has no IPv6 address.
func TestPodWithoutIPv6(t *testing.T) {
	r := newRig(t, nil)
	pod := r.pod("four", PortMapping{ContainerPort: 80, HostPort: 8080})
	inside(t, pod.NetNS, func() error { return writeFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") })
	result, err := r.Attach(t.Context(), pod, Plan{Kind: Builtin})
	must(t, err)
	if len(result.IPs) != 1 || !result.IPs[0].Is4() {
		t.Errorf("addresses %v", result.IPs)
	}
	serve(t, pod, "tcp", 80)
	expect(t, "", "tcp", "127.0.0.1:8080", "four")
	if _, _, err := ask("", "tcp", at(hostAddresses[1].Addr(), 8080)); err == nil {
		t.Error("the host port answers by IPv6")
	}
	must(t, r.Detach(t.Context(), pod, Plan{Kind: Builtin}))
	r.settle()
	if len(r.leases.owners) != 0 {
		t.Errorf("addresses left: %v", r.leases.owners)
	}
}

// Sysctls of the pod's device are set once it is there; one that is refused fails the Attach and leaves nothing.
func TestDeviceSysctls(t *testing.T) {
	r := newRig(t, nil)
	pod := r.pod("a")
	pod.Sysctls = map[string]string{"net.ipv4.conf.eth0.forwarding": "0", "net.ipv4.ip_unprivileged_port_start": "0"}
	_, err := r.Attach(t.Context(), pod, Plan{Kind: Builtin})
	must(t, err)
	must(t, r.Detach(t.Context(), pod, Plan{Kind: Builtin}))
	pod.Sysctls = map[string]string{"net.ipv4.conf.eth1.forwarding": "0"}
	if _, err := r.Attach(t.Context(), pod, Plan{Kind: Builtin}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "eth1") {
		t.Errorf("got %v", err)
	}
	r.settle()
	if len(r.leases.all()) != 0 {
		t.Error("lease is left")
	}
}

// A network of one family only works like any other.
func TestSingleFamily(t *testing.T) {
	filterBridges(t, "0")
	for name, c := range map[string]struct {
		subnet   string
		family   int
		loopback string
	}{"IPv4": {"10.94.0.0/24", v4, "127.0.0.1"}, "IPv6": {"fd94::/64", v6, "::1"}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.BuiltinSubnet = []string{c.subnet} })
			a, b := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080}), r.connect("b")
			if len(a.Result.IPs) != 1 || a.Result.IPs[0].Is4() != (c.family == v4) {
				t.Fatalf("addresses %v", a.Result.IPs)
			}
			serve(t, a.Pod, "tcp", 80)
			serve(t, Pod{NetNS: outsideNetNS, Name: "outside"}, "tcp", 81)
			expect(t, b.NetNS, "tcp", at(a.Result.IPs[0], 80), "a")
			expect(t, b.NetNS, "tcp", at(hostAddresses[c.family].Addr(), 8080), "a")
			expect(t, "", "tcp", at(c.loopback, 8080), "a")
			expect(t, a.NetNS, "tcp", at(outsideAddresses[c.family].Addr(), 81), "outside")
		})
	}
}

// A host that gets its routes by router advertisements goes on with that when it becomes a router itself.
func TestAdvertisedRoutesAreKept(t *testing.T) {
	const acceptRA = "/proc/sys/net/ipv6/conf/uplink/accept_ra"
	must(t, writeFile("/proc/sys/net/ipv6/conf/all/forwarding", "0"))
	must(t, writeFile(acceptRA, "1"))
	newRig(t, nil).connect("a")
	if got, err := os.ReadFile(acceptRA); err != nil || string(got) != "2\n" {
		t.Errorf("accept_ra is %q (%v), want 2", got, err)
	}
}

// A pod sends nothing that is too large for the uplink.
func TestMTUFollowsTheUplink(t *testing.T) {
	uplink, err := netlink.LinkByName("uplink")
	must(t, err)
	must(t, netlink.LinkSetMTU(uplink, 1400))
	t.Cleanup(func() { must(t, netlink.LinkSetMTU(uplink, 1500)) })
	r := newRig(t, nil)
	for range 2 { // a bridge that has lost its last pod must not forget it
		a := r.connect("a")
		inside(t, a.NetNS, func() error {
			link, err := netlink.LinkByName(podDevice)
			if err == nil && link.Attrs().MTU != 1400 {
				t.Errorf("MTU %d, want 1400", link.Attrs().MTU)
			}
			return err
		})
		r.detach(a)
		r.settle()
	}
}
