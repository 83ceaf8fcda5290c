package network

import (
	"bufio"
	"context"
	"errors"
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

	"github.com/berth-runtime/berth/internal/namespace"
	"github.com/berth-runtime/berth/test/isolation"
	"github.com/berth-runtime/berth/test/privilege"
)

const (
	// cniBin is where Debian installs the plugins.
	cniBin = "/usr/lib/cni"
	// answerTime bounds a test's wait for a packet.
	answerTime = 5 * time.Second
)

// The host of the tests and its neighbour, which is outside.
var (
	hostAddresses    = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")}
	outsideAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}
	outsideNetNS     string
	hostNetNS        string
)

// TestMain runs the tests in network and mount namespaces of their own: the host of the tests. Nothing that they do to
// links, routes, nftables and sysctls can meet another test.
func TestMain(m *testing.M) {
	if dir := os.Getenv(workerRole); dir != "" {
		fmt.Fprintln(os.Stderr, "worker:", work(dir))
		os.Exit(1)
	}
	if slices.Contains(os.Args, "-test.fuzzworker") {
		os.Exit(m.Run()) // needs no host, and what it inherits from its parent
	}
	if !privilege.Package() {
		return
	}
	if err := isolation.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if !isolation.Active() {
		fmt.Fprintln(os.Stderr, "what these tests do must not meet the machine: they run in namespaces of their own only")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("/tmp", "b")
	if err == nil {
		outsideNetNS = filepath.Join(dir, "outside", "net")
		err = makeHost(filepath.Dir(outsideNetNS))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "make the host of the tests:", err)
		os.Exit(1)
	}
	if hostNetNS, err = os.Readlink("/proc/self/ns/net"); err != nil {
		fmt.Fprintln(os.Stderr, "find the network namespace of the tests:", err)
		os.Exit(1)
	}
	code := m.Run()
	err = errors.Join(namespace.Remove(context.Background(), filepath.Dir(outsideNetNS)), os.Remove(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, "remove the host of the tests:", err)
		code = 1
	}
	os.Exit(isolation.Leave(code))
}

// makeHost connects the host with the outside.
func makeHost(outside string) error {
	paths, err := namespace.Create(context.Background(), namespace.Request{Dir: outside, Net: true})
	if err != nil {
		return err
	}
	ns, err := os.Open(paths.Net)
	if err != nil {
		return err
	}
	defer ns.Close()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "uplink"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "world", PeerNamespace: netlink.NsFd(ns.Fd())}); err != nil {
		return err
	}
	if err := namespace.Do(paths.Net, func() error { return configureLink("world", outsideAddresses, nil) }); err != nil {
		return err
	}
	if err := configureLink("uplink", hostAddresses, outsideAddresses); err != nil {
		return err
	}
	for range 500 {
		uplink, err := netlink.LinkByName("uplink")
		if err != nil || uplink.Attrs().OperState == netlink.OperUp {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("uplink does not come up")
}

// filterBridges switches br_netfilter on or off in the host of the tests.
func filterBridges(t testing.TB, value string) {
	t.Helper()
	must(t, setSysctl("bridge/bridge-nf-call-iptables", value))
	must(t, setSysctl("bridge/bridge-nf-call-ip6tables", value))
}

func configureLink(name string, addresses, gateways []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		if err := addAddress(netlink.AddrAdd, link, address); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, gateway := range gateways {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.Addr().AsSlice()}); err != nil {
			return err
		}
	}
	return nil
}

// serve answers on a port inside a pod, until the test ends, with the client's address and the name.
func serve(t testing.TB, pod Pod, network string, port int) {
	t.Helper()
	address := fmt.Sprintf(":%d", port)
	if network == "udp" {
		var conn net.PacketConn
		inside(t, pod.NetNS, func() (err error) { conn, err = net.ListenPacket("udp", address); return err })
		t.Cleanup(func() { _ = conn.Close() })
		go func() {
			buffer := make([]byte, 100)
			for {
				_, client, err := conn.ReadFrom(buffer)
				if err != nil {
					return
				}
				_, _ = conn.WriteTo([]byte(client.(*net.UDPAddr).IP.String()+" "+pod.Name+"\n"), client)
			}
		}()
		return
	}
	var listener net.Listener
	inside(t, pod.NetNS, func() (err error) { listener, err = net.Listen("tcp", address); return err })
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(conn, "%s %s\n", conn.RemoteAddr().(*net.TCPAddr).IP, pod.Name)
			_ = conn.Close()
		}
	}()
}

// ask connects from a namespace ("" is the host) and returns the client's address as the server sees it and who answered.
func ask(netns, network, address string) (client, server string, err error) {
	dial := func() error {
		conn, err := net.DialTimeout(network, address, answerTime)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := conn.Write([]byte("who")); err != nil {
				return err
			}
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		client, server, _ = strings.Cut(strings.TrimSpace(line), " ")
		return err
	}
	if netns == "" {
		return client, server, errors.Join(dial())
	}
	err = namespace.Do(netns, dial)
	return client, server, err
}

// expect asks and fails the test unless the named pod answers.
func expect(t testing.TB, netns, network, address, server string) (client string) {
	t.Helper()
	client, got, err := ask(netns, network, address)
	if err != nil || got != server {
		t.Errorf("%s %s from %q: answer of %q (%v), want %q", network, address, netns, got, err, server)
	}
	return client
}

func inside(t testing.TB, netns string, fn func() error) {
	t.Helper()
	if err := namespace.Do(netns, fn); err != nil {
		t.Fatal(err)
	}
}

// strays lists the threads of this process that are in another network namespace than the tests began in.
func strays(t testing.TB) []string {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	must(t, err)
	var found []string
	for _, thread := range threads {
		name, err := os.Readlink("/proc/self/task/" + thread.Name() + "/ns/net")
		if err == nil && name != hostNetNS {
			found = append(found, thread.Name()+" "+name)
		}
	}
	return found
}

// hostState describes links, addresses, routes and packet filters of the host, without what changes by itself.
func hostState(t testing.TB) string {
	t.Helper()
	links, err := netlink.LinkList()
	must(t, err)
	var state strings.Builder
	for _, link := range links {
		fmt.Fprintln(&state, link.Type(), link.Attrs().Name)
	}
	for _, args := range [][]string{{"ip", "route"}, {"ip", "-6", "route", "show", "table", "all"}, {"nft", "list", "ruleset"}} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		for line := range strings.Lines(strings.ReplaceAll(string(out), " linkdown", "")) {
			if !strings.Contains(line, "fe80:") && !strings.Contains(line, "multicast") && !strings.Contains(line, "anycast") {
				state.WriteString(line)
			}
		}
	}
	return state.String()
}

func ruleset(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	return string(out)
}

func deadline() time.Time { return time.Now().Add(answerTime) }

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
