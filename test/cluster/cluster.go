package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/node"
	"github.com/berth-runtime/berth/test/registry"
)

const (
	nodeName     = "node"
	nodeIP       = "192.0.2.10"
	serviceCIDR  = "10.96.0.0/16"
	apiServiceIP = "10.96.0.1"
	podCIDR      = "10.244.0.0/16"
	// netnsDir is the default of network.netns_dir.
	netnsDir = "/run/netns"
	// partDeadline bounds the start of one part of the cluster.
	partDeadline = 2 * time.Minute
)

// cluster is a running single-node cluster.
type cluster struct {
	options
	dir      string
	registry *registry.Registry
	node     *node.Node
	running  []*program
	// cgroup is the parent of kubelet's control groups.
	cgroup string
	// image is a busybox, content an image with one file.
	image, content string
}

// start brings up everything but the network of pods: the node is not ready until a CNI configuration
// appears, which is the first check.
func (c *cluster) start(ctx context.Context) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"network of the node", c.setUpLinks},
		{"images", c.pushImages},
		{"berthd", c.startBerth},
		{"credentials", func(context.Context) error { return c.writeCredentials() }},
		{"control plane", c.startControlPlane},
		{"kubelet", c.startKubelet},
	} {
		begin := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("start %s: %w", step.name, err)
		}
		fmt.Printf("started  %-28s %6.1f s\n", step.name, time.Since(begin).Seconds())
	}
	return nil
}

// setUpLinks gives the network namespace a loopback device and the node's address.
func (c *cluster) setUpLinks(context.Context) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	// A bridge, since not every kernel has dummy devices.
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "node0"}}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add %s: %w", link.Name, err)
	}
	addr, err := netlink.ParseAddr(nodeIP + "/24")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link)); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Gw: net.ParseIP("192.0.2.1")}); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600)
}

func (c *cluster) pushImages(ctx context.Context) (err error) {
	if c.registry, err = registry.Start(ctx, registry.Options{}); err != nil {
		return err
	}
	busybox, err := imagefactory.Busybox()
	if err != nil {
		return err
	}
	content, err := imagefactory.Build(imagefactory.Spec{
		Config: imagefactory.MinimalConfig("/none"),
		Layers: []imagefactory.Layer{{Files: []imagefactory.File{imagefactory.Regular("content.txt", "from an image\n")}}},
	})
	if err != nil {
		return err
	}
	c.image, c.content = c.registry.Host+"/busybox:1", c.registry.Host+"/content:1"
	return errors.Join(
		imagefactory.Push(ctx, imagefactory.Target{Host: c.registry.Host, Repository: "busybox"}, busybox, "1", "2"),
		imagefactory.Push(ctx, imagefactory.Target{Host: c.registry.Host, Repository: "content"}, content, "1"))
}

func (c *cluster) startBerth(ctx context.Context) (err error) {
	hosts := filepath.Join(c.dir, "certs.d", c.registry.Host, "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(hosts), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(hosts, fmt.Appendf(nil, "server = %q\n", "http://"+c.registry.Host), 0o600); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.dir, "net.d"), 0o700); err != nil {
		return err
	}
	c.node, err = node.Start(ctx, node.Options{Bin: c.bin, Dir: c.dir, Configure: func(cfg *config.Config) {
		cfg.Runtime.DefaultHandler = c.handler
		// The namespace of the cluster has a /run of its own.
		cfg.Network.NetNSDir = netnsDir
	}})
	return err
}

func (c *cluster) startControlPlane(ctx context.Context) error {
	err := c.launch(ctx, "etcd", "--data-dir", c.file("etcd"), "--unsafe-no-fsync", "--log-level", "warn")
	if err != nil {
		return err
	}
	err = c.launch(ctx, "kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379", "--service-cluster-ip-range="+serviceCIDR, "--advertise-address="+nodeIP,
		"--tls-cert-file="+c.file("apiserver.crt"), "--tls-private-key-file="+c.file("apiserver.key"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-signing-key-file="+c.file("sa.key"),
		"--service-account-key-file="+c.file("sa.key"), "--token-auth-file="+c.file("tokens.csv"),
		"--authorization-mode=Node,RBAC", "--allow-privileged=true",
		"--kubelet-preferred-address-types=InternalIP", "--enable-priority-and-fairness=false")
	if err != nil {
		return err
	}
	err = until(ctx, partDeadline, func(ctx context.Context) error {
		_, err := c.kubectl(ctx, "", "get", "--raw", "/readyz")
		return err
	})
	if err != nil {
		return err
	}
	err = c.launch(ctx, "kube-controller-manager", "--kubeconfig="+c.adminConfig(), "--use-service-account-credentials",
		"--service-account-private-key-file="+c.file("sa.key"), "--root-ca-file="+c.file("ca.crt"), "--leader-elect=false",
		"--cluster-cidr="+podCIDR, "--allocate-node-cidrs=true", "--node-monitor-grace-period=60s")
	if err != nil {
		return err
	}
	return errors.Join(
		c.launch(ctx, "kube-scheduler", "--kubeconfig="+c.adminConfig(), "--leader-elect=false"),
		c.launch(ctx, "kube-proxy", "--kubeconfig="+c.adminConfig(), "--proxy-mode=nftables", "--cluster-cidr="+podCIDR,
			"--hostname-override="+nodeName, "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s",
			"--conntrack-tcp-timeout-close-wait=0s"))
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%[1]s
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupRoot: /%[2]s
failCgroupV1: false
failSwapOn: false
resolvConf: ""
podLogsDir: %[3]s/pod-logs
volumePluginDir: %[3]s/volume-plugins
nodeStatusUpdateFrequency: 2s
nodeStatusReportFrequency: 10s
syncFrequency: 10s
serializeImagePulls: false
localStorageCapacityIsolation: true
evictionHard: {memory.available: 50Mi, nodefs.available: "1%%", imagefs.available: "1%%"}
featureGates: {PodAndContainerStatsFromCRI: true}
`

func (c *cluster) startKubelet(ctx context.Context) error {
	c.cgroup = filepath.Base(c.dir) + "-cluster"
	if err := c.makeCgroups(); err != nil {
		return err
	}
	file := c.file("kubelet.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, kubeletConfig, c.node.Socket(), c.cgroup, c.dir), 0o600); err != nil {
		return err
	}
	err := c.launch(ctx, "kubelet", "--config="+file, "--kubeconfig="+c.adminConfig(), "--root-dir="+c.file("kubelet"),
		"--hostname-override="+nodeName, "--node-ip="+nodeIP)
	if err != nil {
		return err
	}
	return until(ctx, partDeadline, func(ctx context.Context) error {
		_, err := c.kubectl(ctx, "", "get", "node", nodeName)
		return err
	})
}

// end removes the pods, stops all programs and deletes what they left on the host.
func (c *cluster) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, partDeadline)
	defer cancel()
	var problems []error
	for _, p := range slices.Backward(c.running) {
		problems = append(problems, p.stop())
	}
	if c.node != nil {
		problems = append(problems, c.node.Close(ctx))
	}
	if c.registry != nil {
		problems = append(problems, c.registry.Stop())
	}
	problems = append(problems, c.unmountVolumes(), c.removeCgroups())
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("%w (%s is kept)", err, c.dir)
	}
	return os.RemoveAll(c.dir)
}

// kubectl runs kubectl as the administrator.
func (c *cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return output(ctx, stdin, filepath.Join(c.programs, "kubectl"), append([]string{"--kubeconfig", c.adminConfig()}, args...)...)
}

// apply creates the objects of a manifest, with the cluster's images in it.
func (c *cluster) apply(ctx context.Context, manifest string) error {
	text, err := manifests.ReadFile("manifests/" + manifest + ".yaml")
	if err != nil {
		return err
	}
	filled := strings.NewReplacer("${IMAGE}", c.image, "${CONTENT}", c.content, "${NETD}", filepath.Join(c.dir, "net.d")).
		Replace(string(text))
	_, err = c.kubectl(ctx, filled, "apply", "-f", "-")
	return err
}
