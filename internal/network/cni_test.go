package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/internal/namespace"
)

// seedList is the conflist that users of the earlier system have, as it stands.
const seedList = `{
    "cniVersion": "0.3.0",
    "name": "mynet",
    "plugins": [{
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "ipMasq": true,
        "ipam": {
            "type": "host-local",
            "subnet": "10.22.0.0/16",
            "routes": [{"dst": "0.0.0.0/0"}]
        }
    }]
}`

// bridgeList returns a conflist of a version with the given plugins after bridge and host-local, for IPv4 and IPv6.
func bridgeList(version, more string) string {
	return `{"cniVersion": "` + version + `", "name": "mynet", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
		"ipMasq": true, "hairpinMode": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.22.0.0/16"}], [{"subnet": "fd22::/64"}]],
		"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}` + more + `]}`
}

const portmap = `, {"type": "portmap", "capabilities": {"portMappings": true}}`

// withList opens a rig with a conflist, and removes what the bridge plugin leaves on purpose: its bridge.
func withList(t *testing.T, list string, change func(*Options)) *rig {
	t.Helper()
	return newRig(t, func(o *Options) {
		if change != nil {
			change(o)
		}
		must(t, os.MkdirAll(o.ConfDir, 0o755))
		must(t, os.WriteFile(filepath.Join(o.ConfDir, "10-mynet.conflist"), []byte(list), 0o600))
		t.Cleanup(func() { removePluginLeftovers(t) })
	})
}

// removePluginLeftovers takes away what plugins keep without a pod, after checking that it is no more than that.
func removePluginLeftovers(t testing.TB) {
	t.Helper()
	leases, err := filepath.Glob("/var/lib/cni/networks/*/*[.:]*")
	must(t, err)
	leases = slices.DeleteFunc(leases, func(name string) bool { return strings.Contains(name, "last_reserved_ip") })
	if len(leases) > 0 {
		t.Errorf("host-local still has %v", leases)
	}
	must(t, os.RemoveAll("/var/lib/cni"))
	if link, err := netlink.LinkByName("cni0"); err == nil {
		must(t, netlink.LinkDel(link))
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		out, err := exec.Command(tool+"-save", "-t", "nat").CombinedOutput()
		if err != nil {
			t.Fatalf("%s-save: %v: %s", tool, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "-A CNI-DN-") || strings.HasPrefix(line, "-A POSTROUTING -s ") {
				t.Errorf("%s has a rule of a pod: %s", tool, line)
			}
		}
		for _, family := range []string{"ip", "ip6"} {
			// iptables makes its tables on first use and never removes them.
			_ = exec.Command("nft", "delete", "table", family, "nat").Run()
			_ = exec.Command("nft", "delete", "table", family, "filter").Run()
		}
	}
}

// The old conflist works as it stands: pods reach each other, the host and the outside, and host ports, which none of its
// plugins knows about, answer everywhere, loopback included.
func TestSeedConflist(t *testing.T) {
	filterBridges(t, "0")
	r := withList(t, seedList, nil)
	if err := r.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
	a, b := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080}), r.connect("b")
	if a.Plan.Kind != CNI || a.Plan.Network != "mynet" || !a.Plan.HostPorts {
		t.Errorf("plan %+v", a.Plan)
	}
	if ips := a.Result.IPs; len(ips) != 1 || !strings.HasPrefix(ips[0].String(), "10.22.") {
		t.Fatalf("addresses %v", ips)
	}
	serve(t, a.Pod, "tcp", 80)
	serve(t, Pod{NetNS: outsideNetNS, Name: "outside"}, "tcp", 81)
	expect(t, "", "tcp", at(a.Result.IPs[0], 80), "a")
	expect(t, b.NetNS, "tcp", at(a.Result.IPs[0], 80), "a")
	expect(t, a.NetNS, "tcp", at(outsideAddresses[0].Addr(), 81), "outside")
	for _, netns := range []string{"", outsideNetNS, b.NetNS, a.NetNS} {
		expect(t, netns, "tcp", at(hostAddresses[0].Addr(), 8080), "a")
	}
	expect(t, "", "tcp", "127.0.0.1:8080", "a")
}

// With the portmap plugin host ports are its work. Every version of the specification does.
func TestPortmapPlugin(t *testing.T) {
	for _, version := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0"} {
		t.Run(strings.ReplaceAll(version, ".", "_"), func(t *testing.T) {
			r := withList(t, bridgeList(version, portmap), nil)
			a := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080}, PortMapping{Protocol: "UDP", ContainerPort: 53, HostPort: 5353})
			b := r.connect("b")
			if a.Plan.HostPorts {
				t.Error("host ports are taken for ours")
			}
			if len(a.Result.IPs) != 2 || !a.Result.IPs[0].Is4() {
				t.Errorf("addresses %v", a.Result.IPs)
			}
			serve(t, a.Pod, "tcp", 80)
			serve(t, a.Pod, "udp", 53)
			for _, address := range []any{"127.0.0.1", hostAddresses[0].Addr(), hostAddresses[1].Addr()} {
				expect(t, "", "tcp", at(address, 8080), "a")
			}
			expect(t, "", "udp", "127.0.0.1:5353", "a")
			expect(t, outsideNetNS, "tcp", at(hostAddresses[0].Addr(), 8080), "a")
			expect(t, b.NetNS, "tcp", at(hostAddresses[0].Addr(), 8080), "a")
			pod := r.pod("c", PortMapping{ContainerPort: 80, HostPort: 8080})
			if _, err := r.Attach(t.Context(), pod, a.Plan); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "test/a") {
				t.Errorf("second pod with the same port: %v", err)
			}
		})
	}
}

// A single plugin's file is a list of one.
func TestSinglePluginFile(t *testing.T) {
	r := withList(t, `broken`, nil)
	conf := `{"cniVersion": "0.3.1", "name": "mynet", "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {"type": "host-local", "subnet": "10.22.0.0/16"}}`
	must(t, os.WriteFile(filepath.Join(r.options.ConfDir, "20-mynet.conf"), []byte(conf), 0o600))
	a := r.connect("a")
	serve(t, a.Pod, "tcp", 80)
	expect(t, "", "tcp", at(a.Result.IPs[0], 80), "a")
}

// The pod leaves by the configuration that it came with, whatever has become of the file or the namespace since.
func TestDetachByTheOldConfiguration(t *testing.T) {
	for _, gone := range []string{"Configuration", "Namespace"} {
		t.Run(gone, func(t *testing.T) {
			r := withList(t, bridgeList("1.0.0", portmap), nil)
			a := r.connect("a", PortMapping{ContainerPort: 80, HostPort: 8080})
			raw, err := json.Marshal(a.Plan)
			must(t, err)
			var stored Plan
			must(t, json.Unmarshal(raw, &stored))
			a.Plan = stored
			if gone == "Configuration" {
				must(t, os.RemoveAll(r.options.ConfDir))
			} else {
				must(t, namespace.Remove(t.Context(), filepath.Dir(a.NetNS)))
			}
			r.restart()
			for range 2 {
				r.detach(a)
			}
		})
	}
}

// plugin installs a shell script as a plugin in a directory that comes before the real ones.
func (r *rig) plugin(name, script string) {
	r.t.Helper()
	must(r.t, os.MkdirAll(r.options.BinDirs[0], 0o755))
	must(r.t, os.WriteFile(filepath.Join(r.options.BinDirs[0], name), []byte("#!/bin/sh\n"+script), 0o755))
}

func ownBin(o *Options) {
	o.BinDirs = []string{filepath.Join(filepath.Dir(o.Root), "bin"), cniBin}
}

const versions = `[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}' && exit 0
`

// A plugin that fails, in whichever way, gives an error with its own words and kind; the plugins before it are undone.
func TestPluginFailures(t *testing.T) {
	cases := map[string]struct {
		script string
		is     func(error) bool
		says   string
	}{
		"JSON":      {`echo '{"cniVersion":"1.0.0","code":11,"msg":"controller is away","details":"ask later"}'; exit 1`, errdefs.IsUnavailable, "controller is away; ask later"},
		"BadConfig": {`echo '{"cniVersion":"1.0.0","code":7,"msg":"mtu is wrong"}'; exit 1`, errdefs.IsFailedPrecondition, "mtu is wrong"},
		"Stderr":    {`echo 'no route to nowhere' >&2; exit 3`, errdefs.IsUnknown, "no route to nowhere"},
		"Silent":    {`exit 7`, errdefs.IsUnknown, "exit status 7"},
		"Killed":    {`kill -9 $$`, errdefs.IsUnknown, "killed"},
		"Garbage":   {`echo nonsense`, errdefs.IsUnknown, "invalid character"},
		"NoAddress": {`echo '{"cniVersion":"1.0.0"}'`, errdefs.IsFailedPrecondition, "no address"},
		"Flood":     {`head -c 3000000 /dev/zero`, errdefs.IsInternal, "output"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := withList(t, bridgeList("1.0.0", `, {"type": "broken"}`), ownBin)
			r.plugin("broken", versions+`[ "$CNI_COMMAND" = ADD ] || exit 0
`+c.script)
			pod := r.pod("a", PortMapping{ContainerPort: 80, HostPort: 8080})
			plan, err := r.Plan(pod)
			must(t, err)
			_, err = r.Attach(t.Context(), pod, plan)
			if !c.is(err) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "mynet") || !strings.Contains(err.Error(), "test/a") {
				t.Errorf("got %v", err)
			}
			if held := r.leases.all(); len(held) != 0 {
				t.Errorf("leases %v are left", held)
			}
			must(t, r.Detach(t.Context(), pod, plan)) // owed, and nothing to do
		})
	}
}

// A plugin that hangs is ended with its children when its time is over, or the caller's.
func TestHangingPlugin(t *testing.T) {
	const list = `{"cniVersion": "1.0.0", "name": "mynet", "plugins": [{"type": "hanging"}]}` // no other that may take long
	for _, whose := range []string{"Plugin", "Caller"} {
		t.Run(whose, func(t *testing.T) {
			r := withList(t, list, func(o *Options) {
				ownBin(o)
				if whose == "Plugin" {
					o.PluginTimeout = time.Second
				}
			})
			r.plugin("hanging", versions+`[ "$CNI_COMMAND" = ADD ] || exit 0
sleep 300 & sleep 300`)
			pod := r.pod("a")
			plan, err := r.Plan(pod)
			must(t, err)
			ctx := t.Context()
			if whose == "Caller" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Second)
				defer cancel()
			}
			_, err = r.Attach(ctx, pod, plan)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "hanging") {
				t.Errorf("got %v", err)
			}
			if whose == "Plugin" && !strings.Contains(err.Error(), "ADD exceeded its 1s") {
				t.Errorf("error does not say what took too long: %v", err)
			}
		})
	}
}

// A plugin that is not installed makes the node not ready, in words, and Attach fails; with the plugin both work.
func TestMissingPlugin(t *testing.T) {
	r := withList(t, bridgeList("1.0.0", `, {"type": "special"}`), ownBin)
	pod := r.pod("a")
	plan, err := r.Plan(pod)
	must(t, err)
	for what, err := range map[string]error{"Ready": r.Ready(), "Attach": second(r.Attach(t.Context(), pod, plan))} {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "special") || !strings.Contains(err.Error(), cniBin) {
			t.Errorf("%s = %v", what, err)
		}
	}
	// It cannot have made anything, so the pod can go without it, and what the plugin before it has made goes too.
	must(t, r.Detach(t.Context(), pod, plan))
	r.plugin("special", versions+`[ "$CNI_COMMAND" = ADD ] || exit 0
sed 's/.*"prevResult":\(.*\),"type":"special".*/\1/'`)
	if err := r.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
	// Who has connected a pod must disconnect it.
	b := r.pod("b")
	must(t, second(r.Attach(t.Context(), b, plan)))
	must(t, os.Remove(filepath.Join(r.options.BinDirs[0], "special")))
	if err := r.Detach(t.Context(), b, plan); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "special") {
		t.Errorf("Detach of a connected pod without the plugin = %v", err)
	}
	r.plugin("special", versions+"exit 0")
	must(t, r.Detach(t.Context(), b, plan))
}

// A plugin that is just being written is waited for.
func TestPluginBeingInstalled(t *testing.T) {
	r := withList(t, `{"cniVersion": "1.0.0", "name": "mynet", "plugins": [{"type": "late"}]}`, ownBin)
	r.plugin("late", versions+`[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.2.2.2/24"}]}'
exit 0`)
	writer, err := os.OpenFile(filepath.Join(r.options.BinDirs[0], "late"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	done := time.AfterFunc(3*busyPause, func() { must(t, writer.Close()) })
	defer done.Stop()
	r.connect("a")
}

// Plugins get the pod, and the arguments of the capabilities that they declare.
func TestPluginArguments(t *testing.T) {
	r := withList(t, `{"cniVersion": "1.0.0", "name": "recorded", "plugins": [{"type": "teller",
		"capabilities": {"portMappings": true, "dns": true, "bandwidth": true, "cgroupPath": true,
			"io.kubernetes.cri.pod-annotations": true}}]}`, ownBin)
	log := filepath.Join(r.dir, "recorded")
	r.plugin("teller", versions+`{ echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS"; echo "$CNI_ARGS"; cat; echo; } >>`+log+`
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"},{"name":"veth"}],"ips":[{"address":"10.1.1.1/24","interface":1},{"address":"fd00::2/64","interface":0},{"address":"10.2.2.2/24","interface":0}]}'
exit 0`)
	pod := r.pod("a", PortMapping{ContainerPort: 80, HostPort: 8080, HostIP: "127.0.0.1"}, PortMapping{ContainerPort: 81})
	pod.DNS = DNS{Servers: []string{"192.0.2.53"}, Searches: []string{"example.org"}}
	pod.Annotations = map[string]string{"color": "blue"}
	pod.Bandwidth = Bandwidth{Ingress: 10_000_000, Egress: 1500}
	pod.CgroupParent = "/kubepods/pod1"
	plan, err := r.Plan(pod)
	must(t, err)
	result, err := r.Attach(t.Context(), pod, plan)
	must(t, err)
	if got := fmt.Sprint(result.IPs); got != "[10.2.2.2 fd00::2]" {
		t.Errorf("addresses %s, want those of the pod's device only, IPv4 first", got)
	}
	must(t, r.Detach(t.Context(), pod, plan))
	raw, err := os.ReadFile(log)
	must(t, err)
	for _, want := range []string{
		"ADD " + pod.ID + " eth0 " + pod.NetNS, "DEL " + pod.ID + " eth0 " + pod.NetNS,
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=test;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=" + pod.ID + ";K8S_POD_UID=uid-a",
		`"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}]`,
		`"dns":{"searches":["example.org"],"servers":["192.0.2.53"]}`,
		`"io.kubernetes.cri.pod-annotations":{"color":"blue"}`,
		`"bandwidth":{"egressBurst":4294967295,"egressRate":1500,"ingressBurst":4294967295,"ingressRate":10000000}`, `"cgroupPath":"/kubepods/pod1"`,
	} {
		if !strings.Contains(normal(string(raw)), normal(want)) {
			t.Errorf("plugins did not get %s, but\n%s", want, raw)
		}
	}
}

// normal makes texts comparable in which only the order of JSON keys differs.
func normal(s string) string {
	for _, pair := range [][2]string{
		{`{"containerPort":80,"hostIP":"127.0.0.1","hostPort":8080,"protocol":"tcp"}`, `{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}`},
		{`{"servers":["192.0.2.53"],"searches":["example.org"]}`, `{"searches":["example.org"],"servers":["192.0.2.53"]}`},
	} {
		s = strings.ReplaceAll(s, pair[0], pair[1])
	}
	return s
}

// STATUS decides whether the node is ready, for lists that have it.
func TestStatusOfPlugins(t *testing.T) {
	r := withList(t, `{"cniVersion": "1.1.0", "name": "moody", "plugins": [{"type": "moody"}]}`, ownBin)
	mood := filepath.Join(r.dir, "bad")
	must(t, os.WriteFile(mood, nil, 0o600))
	r.plugin("moody", versions+`[ "$CNI_COMMAND" = STATUS ] || exit 0
[ -e `+mood+` ] || exit 0
echo '{"cniVersion":"1.1.0","code":50,"msg":"not in the mood"}'; exit 1`)
	eventually(t, "bad mood", func() bool { err := r.Ready(); return err != nil && strings.Contains(err.Error(), "not in the mood") })
	must(t, os.Remove(mood))
	eventually(t, "good mood", func() bool { return r.Ready() == nil })
	must(t, os.WriteFile(mood, nil, 0o600))
	r.cni.mu.Lock()
	r.cni.status.at = time.Now().Add(-2 * statusMaxAge) // as if the answer were old
	r.cni.mu.Unlock()
	eventually(t, "bad mood again", func() bool { return r.Ready() != nil })
}

// Check finds out that a pod has lost its network, with plugins that can tell and with the built-in network.
func TestCheck(t *testing.T) {
	r := withList(t, strings.Replace(seedList, "0.3.0", "0.4.0", 1), nil)
	plugged := r.connect("plugged")
	builtin := connected{Pod: r.pod("builtin"), Plan: Plan{Kind: Builtin}}
	_, err := r.Attach(t.Context(), builtin.Pod, builtin.Plan)
	must(t, err)
	for _, c := range []connected{plugged, builtin} {
		if err := r.Check(t.Context(), c.Pod, c.Plan); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		inside(t, c.NetNS, func() error {
			link, err := netlink.LinkByName(podDevice)
			must(t, err)
			return netlink.LinkDel(link)
		})
		if err := r.Check(t.Context(), c.Pod, c.Plan); err == nil || !strings.Contains(err.Error(), c.Name) {
			t.Errorf("%s without its device: %v", c.Name, err)
		}
	}
	must(t, r.Detach(t.Context(), builtin.Pod, builtin.Plan))
}
