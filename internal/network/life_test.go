package network

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/internal/namespace"
)

// A manager that is opened again knows who has which address and port, whatever else has become of the host's firewall.
func TestRestart(t *testing.T) {
	for _, flushed := range []bool{false, true} {
		t.Run(fmt.Sprintf("Flushed%t", flushed), func(t *testing.T) {
			r := newRig(t, nil)
			a := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080})
			serve(t, a.Pod, "tcp", 80)
			r.restart()
			if flushed {
				must(t, exec.Command("nft", "flush", "ruleset").Run())
			} else {
				expect(t, "", "tcp", "127.0.0.1:8080", "a")
			}
			b := r.connect("b")
			expect(t, "", "tcp", "127.0.0.1:8080", "a")
			expect(t, b.NetNS, "tcp", at(a.Result.IPs[0], 80), "a")
			if a.Result.IPs[0] == b.Result.IPs[0] {
				t.Errorf("%s is given twice", b.Result.IPs[0])
			}
			_, err := r.Attach(t.Context(), r.pod("c", PortMapping{ContainerPort: 80, HostPort: 8080}), a.Plan)
			if !errdefs.IsAlreadyExists(err) {
				t.Errorf("port of a pod from before: %v", err)
			}
			if err := r.Check(t.Context(), a.Pod, a.Plan); err != nil {
				t.Errorf("Check: %v", err)
			}
		})
	}
}

// A released address is given again only after all others.
func TestAddressesAreReusedLate(t *testing.T) {
	r := newRig(t, func(o *Options) { o.BuiltinSubnet = []string{"10.97.0.0/29"} })
	var seen []netip.Addr
	for i := range 5 {
		c := r.connect(fmt.Sprint("pod", i))
		seen = append(seen, c.Result.IPs[0])
		r.detach(c)
		r.settle()
		if i == 2 {
			keep := r.connect("keep") // the lease that a restart goes on from
			seen = append(seen, keep.Result.IPs[0])
			r.restart()
		}
	}
	for i, a := range seen[:5] {
		for _, b := range seen[:i] {
			if a == b {
				t.Errorf("%s is reused before others: %v", a, seen)
			}
		}
	}
}

// Collect takes down what a killed daemon was doing and no pod owns any more, at whichever point it was interrupted, and
// leaves live pods alone.
func TestCollect(t *testing.T) {
	r := newRig(t, nil)
	live := r.connect("live", PortMapping{ContainerPort: 80, HostPort: 8080})
	serve(t, live.Pod, "tcp", 80)
	before := hostState(t)

	claimed := r.pod("claimed") // killed after the lease was written
	_, err := r.leases.claim(lease{ID: claimed.ID, Pod: "x", Network: Builtin, Ports: []port{{Protocol: TCP, Host: 1, Container: 1}}, Published: true}, r.bridge.nets)
	must(t, err)
	whole := r.pod("whole", PortMapping{ContainerPort: 80, HostPort: 8081}) // killed when all was done
	_, err = r.Attach(t.Context(), whole, live.Plan)
	must(t, err)
	stray := r.pod("stray") // its lease was lost
	_, err = r.Attach(t.Context(), stray, live.Plan)
	must(t, err)
	must(t, os.Remove(r.leases.path(stray.ID)))
	r.restart()

	for range 2 {
		must(t, r.Collect(t.Context(), map[string]bool{live.ID: true, whole.ID: false}))
		r.settle()
		if after := hostState(t); after != before {
			t.Errorf("left on the host:\n%s\nwant\n%s", after, before)
		}
		if held := r.leases.all(); len(held) != 1 || held[0].ID != live.ID {
			t.Errorf("%d leases", len(held))
		}
	}
	expect(t, "", "tcp", "127.0.0.1:8080", "live")
	mine := r.connect("mine") // attached by this process, not named
	must(t, r.Collect(t.Context(), map[string]bool{live.ID: true}))
	if err := r.Check(t.Context(), mine.Pod, mine.Plan); err != nil {
		t.Errorf("Collect took a pod of this process: %v", err)
	}
}

// Collect disconnects pods from CNI networks by the results that libcni has cached, and tells plugins of 1.1.0 who lives.
func TestCollectCNI(t *testing.T) {
	r := withList(t, bridgeList("0.3.1", portmap), ownBin)
	gone := r.pod("gone", PortMapping{ContainerPort: 80, HostPort: 8080})
	plan, err := r.Plan(gone)
	must(t, err)
	_, err = r.Attach(t.Context(), gone, plan)
	must(t, err)
	live := r.connect("live")
	log := filepath.Join(r.dir, "gc")
	r.plugin("sweeper", versions+`[ "$CNI_COMMAND" = GC ] && cat >>`+log+`
exit 0`)
	must(t, os.WriteFile(filepath.Join(r.options.ConfDir, "00-new.conflist"), []byte(`{"cniVersion": "1.1.0", "name": "new", "plugins": [{"type": "sweeper"}]}`), 0o600))
	r.restart()
	must(t, namespace.Remove(t.Context(), filepath.Dir(gone.NetNS)))
	must(t, r.Collect(t.Context(), map[string]bool{live.ID: true}))
	leases, err := filepath.Glob("/var/lib/cni/networks/mynet/10.*")
	must(t, err)
	if len(leases) != 1 {
		t.Errorf("host-local has %v, want one", leases)
	}
	if held := r.leases.all(); len(held) != 0 {
		t.Errorf("leases %v are left", held)
	}
	valid, err := os.ReadFile(log)
	if err != nil || !bytes.Contains(valid, []byte(live.ID)) || bytes.Contains(valid, []byte(gone.ID)) {
		t.Errorf("GC got %s (%v)", valid, err)
	}
	inside(t, live.NetNS, func() error { _, err := netlink.LinkByName(podDevice); return err })
}

// Lease files that are torn, empty, foreign or of another time do not keep the manager from opening.
func TestBrokenLeases(t *testing.T) {
	r := newRig(t, nil)
	live := r.connect("live")
	dir := filepath.Join(r.options.Root, "leases")
	whole, err := os.ReadFile(r.leases.path(live.ID))
	must(t, err)
	for name, content := range map[string][]byte{
		"torn.json": whole[:len(whole)/2], "empty.json": nil, "other.json": whole, live.ID + ".json.new": whole[:3],
		"old.json": []byte(`{"version":0,"id":"old"}`), "zero.json": make([]byte, 100),
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	r.restart()
	if held := r.leases.all(); len(held) != 1 || held[0].ID != live.ID {
		t.Errorf("leases %v", held)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%d files (%v), want one", len(files), err)
	}
}

// Two daemons with different roots keep apart: addresses, ports' tables, bridges, garbage.
func TestTwoManagers(t *testing.T) {
	filterBridges(t, "0")
	first := newRig(t, nil)
	second := openRig(t, func(o *Options) { o.Instance = "0a1b2c3d" })
	third := openRig(t, func(o *Options) {
		o.Instance = "ffffffff"
		o.BuiltinSubnet = []string{DefaultSubnet4, DefaultSubnet6} // as the configuration prints its defaults
	})
	rigs := []*rig{first, second, third}
	pods := make([]connected, len(rigs))
	for i, r := range rigs {
		pods[i] = r.connect(fmt.Sprint("pod", i), PortMapping{ContainerPort: 80, HostPort: int32(8080 + i)})
		serve(t, pods[i].Pod, "tcp", 80)
	}
	for _, r := range rigs {
		must(t, r.Collect(t.Context(), nil))
	}
	for i, r := range rigs {
		r.restart()
		must(t, r.Collect(t.Context(), map[string]bool{pods[i].ID: true}))
		for j := range rigs {
			expect(t, "", "tcp", at("127.0.0.1", 8080+j), fmt.Sprint("pod", j))
			expect(t, "", "tcp", at("::1", 8080+j), fmt.Sprint("pod", j))
			for _, ip := range pods[j].Result.IPs {
				expect(t, pods[i].NetNS, "tcp", at(ip, 80), fmt.Sprint("pod", j))
				expect(t, pods[i].NetNS, "tcp", at(hostAddresses[0].Addr(), 8080+j), fmt.Sprint("pod", j))
			}
		}
	}
	if a, b := first.bridge.name, second.bridge.name; a != "berth0" || b != "berth-0a1b2c3d" {
		t.Errorf("bridges %s and %s", a, b)
	}
}

// Instances take the next piece if their own is in use, and many that start at once get different ones.
func TestInstancesChooseFreeSubnets(t *testing.T) {
	rigs := []*rig{newRig(t, nil)}
	for i := range 4 {
		rigs = append(rigs, openRig(t, func(o *Options) { o.Instance = fmt.Sprint("i", i) }))
	}
	taken, err := defaultSubnets("i0", "none")
	must(t, err)
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(taken[0])}))
	results := make(chan []netip.Addr, len(rigs))
	for i, r := range rigs {
		pod := r.pod(fmt.Sprint("pod", i))
		t.Cleanup(func() { must(t, r.Detach(context.Background(), pod, Plan{Kind: Builtin})) })
		go func() {
			result, err := r.Attach(t.Context(), pod, Plan{Kind: Builtin})
			if err != nil {
				t.Error(err)
			}
			results <- result.IPs
		}()
	}
	var nets []netip.Prefix
	for range rigs {
		ips := <-results
		if len(ips) == 0 {
			continue
		}
		net := netip.PrefixFrom(ips[0], instanceBits).Masked()
		for _, other := range append(nets, taken[0]) {
			if net.Overlaps(other) {
				t.Errorf("%s overlaps %s", net, other)
			}
		}
		nets = append(nets, net)
	}
	must(t, netlink.RouteDel(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(taken[0])}))
}

// A configuration that changes while pods are there: new ones come into the new subnet, the old ones are served on.
func TestSubnetChanges(t *testing.T) {
	r := newRig(t, func(o *Options) { o.BuiltinSubnet = []string{"10.96.1.0/24"} })
	old := r.connect("old", PortMapping{ContainerPort: 80, HostPort: 8080})
	serve(t, old.Pod, "tcp", 80)
	r.options.BuiltinSubnet = []string{"10.96.2.0/24"}
	r.restart()
	young := r.connect("young")
	if ip := young.Result.IPs[0].String(); !strings.HasPrefix(ip, "10.96.2.") {
		t.Errorf("new pod has %s", ip)
	}
	serve(t, Pod{NetNS: outsideNetNS, Name: "outside"}, "tcp", 81)
	expect(t, "", "tcp", "127.0.0.1:8080", "old")
	expect(t, young.NetNS, "tcp", at(old.Result.IPs[0], 80), "old")
	for _, pod := range []connected{old, young} {
		expect(t, pod.NetNS, "tcp", at(outsideAddresses[0].Addr(), 81), "outside")
	}
}

// Another program deletes the bridge: the next pod brings it back.
func TestBridgeIsMadeAgain(t *testing.T) {
	r := newRig(t, nil)
	r.connect("first")
	link, err := netlink.LinkByName(r.bridge.name)
	must(t, err)
	must(t, netlink.LinkDel(link))
	a, b := r.connect("a"), r.connect("b")
	serve(t, a.Pod, "tcp", 80)
	expect(t, b.NetNS, "tcp", at(a.Result.IPs[0], 80), "a")
}

// What stands in the way of the bridge makes the node not ready with the reason, until it is gone; nothing must come for that.
func TestBuiltinFaultIsReportedAndMended(t *testing.T) {
	r := newRig(t, nil)
	attributes := netlink.NewLinkAttrs()
	attributes.Name = r.bridge.name
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "in-the-way"}))
	if err := r.Ready(); err != nil {
		t.Errorf("Ready before anything was tried: %v", err)
	}
	if _, err := r.Attach(t.Context(), r.pod("a"), Plan{Kind: Builtin}); err == nil || !strings.Contains(err.Error(), r.bridge.name) {
		t.Errorf("Attach: %v", err)
	}
	if err := r.Ready(); err == nil || !strings.Contains(err.Error(), r.bridge.name) {
		t.Errorf("Ready: %v", err)
	}
	link, err := netlink.LinkByName(r.bridge.name)
	must(t, err)
	must(t, netlink.LinkDel(link))
	eventually(t, "ready again", func() bool { return r.Ready() == nil })
}

func TestOptionsAreValidated(t *testing.T) {
	for name, c := range map[string]struct {
		options Options
		names   string
	}{
		"Builtin":    {Options{Root: "/r", Builtin: "sometimes"}, "sometimes"},
		"Root":       {Options{Root: "r"}, `"r"`},
		"Instance":   {Options{Root: "/r", Instance: "much-too-long"}, "much-too-long"},
		"Subnet":     {Options{Root: "/r", BuiltinSubnet: []string{"10.1"}}, "10.1"},
		"HostBits":   {Options{Root: "/r", BuiltinSubnet: []string{"10.1.2.3/16"}}, "10.1.0.0/16"},
		"TooSmall":   {Options{Root: "/r", BuiltinSubnet: []string{"10.1.2.0/30"}}, "10.1.2.0/30"},
		"TwoOfAKind": {Options{Root: "/r", BuiltinSubnet: []string{"10.1.0.0/16", "10.2.0.0/16"}}, "10.2.0.0/16"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(t.Context(), c.options); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.names) {
				t.Errorf("got %v", err)
			}
		})
	}
}
