package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

// eachNetwork runs a test with the built-in network and with CNI plugins, of the oldest and a new version of the format.
func eachNetwork(t *testing.T, test func(t *testing.T, n *harness.Node)) {
	t.Helper()
	t.Run("builtin", func(t *testing.T) { test(t, harness.Start(t, harness.Options{})) })
	for _, version := range []string{"0.3.0", "1.0.0"} {
		t.Run("cni-"+version, func(t *testing.T) {
			test(t, harness.Start(t, harness.Options{Conflist: harness.PortmapList(version)}))
		})
	}
}

// web is a container that answers HTTP on port 8080 with its host name.
func web(p *harness.Pod) {
	p.Start([]string{"sh", "-c", "mkdir /tmp/w && hostname >/tmp/w/index.html && exec httpd -f -p 8080 -h /tmp/w"})
}

// fetch gets a page, and waits for the server to have begun.
func fetch(n *harness.Node, t *testing.T, address string) string {
	t.Helper()
	var body string
	n.Eventually("http://"+address+" answers", func() error {
		var err error
		body, err = getPage(n, address)
		return err
	})
	return body
}

// getPage asks once for the page at an address.
func getPage(n *harness.Node, address string) (string, error) {
	ctx, cancel := context.WithTimeout(n.Context(), 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	request.Close = true
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	return strings.TrimSpace(string(data)), err
}

// freePort asks the kernel for an unused port.
func freePort(t *testing.T) int32 {
	t.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// TestNetwork: pods reach each other and the host, the host reaches them, and a port mapping answers on the host's
// addresses, loopback included.
func TestNetwork(t *testing.T) {
	eachNetwork(t, func(t *testing.T, n *harness.Node) {
		n.Ready()
		port := freePort(t)
		a := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: port}, {ContainerPort: 9999}}
		})
		b := n.RunPod()
		web(a)
		client := b.Start([]string{"sleep", "1000"})
		name := a.Config.GetHostname()
		equal(t, "the pod's page from the host", fetch(n, t, net.JoinHostPort(a.IP(), "8080")), name)
		equal(t, "the pod's page from another pod", client.Output("wget", "-q", "-O", "-", "http://"+a.IP()+":8080/"), name)
		equal(t, "the page on the host port, on loopback", fetch(n, t, fmt.Sprintf("127.0.0.1:%d", port)), name)
		if ip := hostIP(t); ip != "" {
			equal(t, "the page on the host port", fetch(n, t, net.JoinHostPort(ip, fmt.Sprint(port))), name)
			equal(t, "the page on the host port from a pod", client.Output("wget", "-q", "-O", "-", fmt.Sprintf("http://%s:%d/", ip, port)), name)
		}
		if a.IP() == b.IP() {
			t.Errorf("both pods have the address %s", a.IP())
		}
	})
}

// hostIP is an IPv4 address of the host that is not loopback, or "".
func hostIP(t *testing.T) string {
	t.Helper()
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return ""
	}
	all, err := link.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil {
			return ip.IP.String()
		}
	}
	return ""
}

// TestIPv6: the built-in network gives an address of each family, and both are reached.
func TestIPv6(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	a, b := n.RunPod(), n.RunPod()
	web(a)
	more := a.Status().GetNetwork().GetAdditionalIps()
	if len(more) != 1 || net.ParseIP(more[0].GetIp()).To4() != nil {
		t.Fatalf("additional addresses are %v, want one IPv6 address", more)
	}
	address := net.JoinHostPort(more[0].GetIp(), "8080")
	equal(t, "the pod's page over IPv6", fetch(n, t, address), a.Config.GetHostname())
	client := b.Start([]string{"sleep", "1000"})
	equal(t, "the pod's page over IPv6 from another pod", client.Output("wget", "-q", "-O", "-", "http://"+address+"/"), a.Config.GetHostname())
}

// TestAddressesDoNotLeak: a subnet for a handful of pods serves many, one after the other, across kills of the daemon.
func TestAddressesDoNotLeak(t *testing.T) {
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		c.Network.BuiltinSubnet = []string{strings.Replace(c.Network.BuiltinSubnet[0], ".0/24", ".0/29", 1)}
	}})
	for i := range 12 {
		pods := []*harness.Pod{n.RunPod(), n.RunPod(), n.RunPod()}
		seen := map[string]bool{}
		for _, p := range pods {
			seen[p.IP()] = true
		}
		equal(t, "number of different addresses", len(seen), len(pods))
		if i%4 == 3 {
			n.KillDaemon()
		}
		for _, p := range pods {
			p.Stop()
			p.Remove()
		}
	}
}

// TestSubnetIsUsedUp: the pod too many gets a clear error, and one that goes makes room.
func TestSubnetIsUsedUp(t *testing.T) {
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		c.Network.BuiltinSubnet = []string{strings.Replace(c.Network.BuiltinSubnet[0], ".0/24", ".0/29", 1)}
	}})
	var pods []*harness.Pod
	for range 1<<3 - 3 { // all but the network's, the bridge's and the broadcast address
		pods = append(pods, n.RunPod())
	}
	_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig()})
	wantError(t, err, codes.ResourceExhausted, "no free address")
	pods[2].Stop()
	n.RunPod()
}

// TestHostNetwork: a pod in the host's network has no address of its own, and reaches what the host does.
func TestHostNetwork(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	node := func(c *runtimeapi.NamespaceOption) { c.Network = runtimeapi.NamespaceMode_NODE }
	p := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		node(c.Linux.SecurityContext.NamespaceOptions)
	})
	c := p.Start([]string{"sleep", "1000"}, func(c *runtimeapi.ContainerConfig) { node(c.Linux.SecurityContext.NamespaceOptions) })
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "host name", c.Output("hostname"), own)
	equal(t, "answer of the registry on the host's loopback", c.Exec("wget", "-q", "-O", "-", "http://"+n.Registry.Host+"/v2/").GetExitCode(), 0)
	equal(t, "mode in the status", p.Status().GetLinux().GetNamespaces().GetOptions().GetNetwork(), runtimeapi.NamespaceMode_NODE)
}

// TestHostPortConflict: the second pod with a host port is refused, by name of the first; once that is gone it runs.
func TestHostPortConflict(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	port := freePort(t)
	mapped := func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: port}}
	}
	first := n.RunPod(mapped)
	_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig(mapped)})
	wantError(t, err, codes.AlreadyExists, fmt.Sprint(port), first.Config.GetMetadata().GetName())
	first.Stop()
	n.RunPod(mapped)
}

// TestSeedConflist: the list of bridge and host-local that is published everywhere works as it stands, and is found when
// it comes while the daemon runs.
func TestSeedConflist(t *testing.T) {
	n := harness.Start(t, harness.Options{Conflist: harness.SeedConflist})
	n.Ready()
	p := n.RunPod()
	web(p)
	if !strings.HasPrefix(p.IP(), "10.22.") {
		t.Errorf("the pod's address is %s, want one of 10.22.0.0/16", p.IP())
	}
	equal(t, "the pod's page from the host", fetch(n, t, net.JoinHostPort(p.IP(), "8080")), p.Config.GetHostname())
}
