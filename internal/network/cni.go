package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	cnitypes "github.com/containernetworking/cni/pkg/types"
	types "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berth-runtime/berth/internal/namespace"
)

// The capabilities that a plugin can claim in its configuration.
const (
	capabilityPorts       = "portMappings"
	capabilityDNS         = "dns"
	capabilityAnnotations = "io.kubernetes.cri.pod-annotations"
	capabilityBandwidth   = "bandwidth"
	capabilityCgroup      = "cgroupPath"
	// ciliumPlugin opens host ports itself, without claiming the capability.
	ciliumPlugin = "cilium-cni"
)

// statusSince is the version of the specification that has STATUS and GC; CHECK came with checkSince.
const (
	statusSince = "1.1.0"
	checkSince  = "0.4.0"
)

// cni connects pods by plugins.
type cni struct {
	dir          string
	bins         []string
	timeout      time.Duration // of one ADD, DEL, CHECK, GC or STATUS of a whole list
	lib          *libcni.CNIConfig
	uncached     *libcni.CNIConfig // for placeholders: leaves the cached result alone
	placeholders string            // directory of placeholder namespaces

	hostPorts bool // host ports are opened unless a plugin does
	log       *slog.Logger

	mu     sync.Mutex
	conf   *configuration
	status status
}

// load returns the configuration as it is in the directory now.
func (c *cni) load() *configuration {
	c.mu.Lock()
	defer c.mu.Unlock()
	previous := c.conf
	c.conf = readConfiguration(c.dir, previous)
	if c.conf == previous {
		return c.conf
	}
	for _, err := range c.conf.skipped {
		c.log.Warn("CNI configuration is unusable", "error", err)
	}
	if c.conf.list != nil && (previous == nil || string(previous.raw) != string(c.conf.raw)) {
		c.log.Info("CNI configuration loaded", "file", c.conf.file, "network", c.conf.list.Name, "cni_version", c.conf.list.CNIVersion)
		c.status = status{}
	}
	return c.conf
}

// loaded returns the configuration as it was last read.
func (c *cni) loaded() *configuration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conf
}

// plan decides for the list of a configuration.
func (c *cni) plan(conf *configuration) Plan {
	return Plan{
		Kind: CNI, Network: conf.list.Name, IfName: podDevice, Config: conf.raw,
		HostPorts: c.hostPorts && !opensHostPorts(conf.list),
	}
}

// attach runs ADD. When it fails, what the plugins that had run before have made is still there.
func (c *cni) attach(ctx context.Context, pod Pod, plan Plan) (Result, []netip.Prefix, error) {
	list, err := libcni.NetworkConfFromBytes(plan.Config)
	if err != nil {
		return Result{}, nil, fmt.Errorf("parse plan: %w", err)
	}
	ctx, cancel := c.deadline(ctx, "ADD")
	defer cancel()
	answer, err := c.lib.AddNetworkList(ctx, list, runtimeConf(pod, plan))
	if err != nil {
		return Result{}, nil, fmt.Errorf("network %s: %w", plan.Network, classify(err))
	}
	return interpret(plan, answer)
}

// detach runs DEL, without a namespace if it is gone.
func (c *cni) detach(ctx context.Context, pod Pod, plan Plan) error {
	list, err := libcni.NetworkConfFromBytes(plan.Config)
	if err != nil {
		return fmt.Errorf("parse plan: %w", err)
	}
	finished := c.knows(pod.ID)
	err = c.remove(ctx, list, runtimeConf(pod, plan))
	if err != nil && !finished && neverRan(err) {
		return c.removeUnfinished(ctx, list, runtimeConf(pod, plan))
	}
	return err
}

func (c *cni) remove(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	ctx, cancel := c.deadline(ctx, "DEL")
	defer cancel()
	if !namespace.Exists(rt.NetNS) {
		rt.NetNS = "" // the specification's way to say that it is gone
	}
	if err := c.withStandIns(ctx, list, *rt); err != nil {
		return fmt.Errorf("network %s: %w", list.Name, err)
	}
	err := c.lib.DelNetworkList(ctx, list, rt)
	if err != nil && ctx.Err() == nil {
		// After an interrupted ADD or DEL plugins trip over the first thing that is not there, having removed what was
		// before it: bridge with iptables-nft, over a chain it had not made yet. The second call passes.
		c.log.Debug("repeat DEL", "pod", rt.ContainerID, "network", list.Name, "error", err)
		err = c.lib.DelNetworkList(ctx, list, rt)
	}
	if err != nil {
		return fmt.Errorf("network %s: %w", list.Name, classify(err))
	}
	return nil
}

// check runs CHECK if the list has it.
func (c *cni) check(ctx context.Context, pod Pod, plan Plan) error {
	list, err := libcni.NetworkConfFromBytes(plan.Config)
	if err != nil {
		return fmt.Errorf("parse plan: %w", err)
	}
	if can, err := version.GreaterThanOrEqualTo(list.CNIVersion, checkSince); err != nil || !can || list.DisableCheck {
		return err
	}
	ctx, cancel := c.deadline(ctx, "CHECK")
	defer cancel()
	if err := c.lib.CheckNetworkList(ctx, list, runtimeConf(pod, plan)); err != nil {
		return fmt.Errorf("network %s: %w", plan.Network, classify(err))
	}
	return nil
}

// attachments lists what the cache of results knows.
func (c *cni) attachments() ([]*libcni.NetworkAttachment, error) {
	cached, err := c.lib.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("list CNI attachments: %w", err)
	}
	return cached, nil
}

// knows reports whether the cache has a result for a pod, or cannot tell.
func (c *cni) knows(id string) bool {
	cached, err := c.lib.GetCachedAttachments(id)
	return err != nil || len(cached) > 0
}

// removeStale runs DEL for attachments of pods that are not live, by the configuration they were connected with.
func (c *cni) removeStale(ctx context.Context, cached []*libcni.NetworkAttachment, live map[string]bool) error {
	var errs []error
	for _, attachment := range cached {
		if live[attachment.ContainerID] {
			continue
		}
		list, err := libcni.NetworkConfFromBytes(attachment.Config)
		if err == nil {
			err = c.remove(ctx, list, &libcni.RuntimeConf{
				ContainerID: attachment.ContainerID, NetNS: attachment.NetNS, IfName: attachment.IfName,
				Args: attachment.CniArgs, CapabilityArgs: attachment.CapabilityArgs,
			})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("disconnect gone pod %s: %w", attachment.ContainerID, err))
		}
	}
	return errors.Join(errs...)
}

// collect runs GC if the loaded list has it.
func (c *cni) collect(ctx context.Context, live map[string]bool) error {
	conf := c.loaded()
	if conf.list == nil || conf.list.DisableGC || !since(conf.list, statusSince) {
		return nil
	}
	valid := make([]cnitypes.GCAttachment, 0, len(live))
	for id := range live {
		valid = append(valid, cnitypes.GCAttachment{ContainerID: id, IfName: podDevice})
	}
	if err := c.lib.GCNetworkList(ctx, conf.list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		return fmt.Errorf("network %s: %w", conf.list.Name, classify(err))
	}
	return nil
}

func (c *cni) deadline(ctx context.Context, verb string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("%s exceeded its %s: %w", verb, c.timeout, context.DeadlineExceeded))
}

// since reports whether a list is of at least a version.
func since(list *libcni.NetworkConfigList, least string) bool {
	reached, err := version.GreaterThanOrEqualTo(list.CNIVersion, least)
	return err == nil && reached
}

// runtimeConf says to the plugins which pod it is about. The keys are those that the kubelet has always used.
func runtimeConf(pod Pod, plan Plan) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: pod.ID,
		NetNS:       namespace.PluginPath(pod.NetNS),
		IfName:      plan.IfName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", pod.Namespace},
			{"K8S_POD_NAME", pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
			{"K8S_POD_UID", pod.UID},
		},
		CapabilityArgs: capabilities(pod),
	}
}

func capabilities(pod Pod) map[string]any {
	args := map[string]any{}
	type mapping struct {
		HostPort      int32  `json:"hostPort"`
		ContainerPort int32  `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP,omitempty"`
	}
	var mappings []mapping
	for _, m := range pod.PortMappings {
		if valid, err := m.validate(); err == nil && m.HostPort != 0 {
			mappings = append(mappings, mapping{m.HostPort, m.ContainerPort, valid.Protocol, m.HostIP})
		}
	}
	if len(mappings) > 0 {
		args[capabilityPorts] = mappings
	}
	if d := pod.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		args[capabilityDNS] = d
	}
	if len(pod.Annotations) > 0 {
		args[capabilityAnnotations] = pod.Annotations
	}
	if limits := bandwidthArgs(pod.Bandwidth); limits != nil {
		args[capabilityBandwidth] = limits
	}
	if pod.CgroupParent != "" {
		args[capabilityCgroup] = pod.CgroupParent
	}
	return args
}

// interpret makes our result of one of plugins.
func interpret(plan Plan, answer cnitypes.Result) (Result, []netip.Prefix, error) {
	said, err := types.NewResultFromResult(answer)
	if err != nil {
		return Result{}, nil, fmt.Errorf("network %s: understand result: %w", plan.Network, err)
	}
	ips, addresses, err := addressesOf(said, plan.IfName)
	if err != nil {
		return Result{}, nil, fmt.Errorf("network %s: %w", plan.Network, err)
	}
	result := Result{IPs: primaryFirst(ips)}
	if len(addresses) == 0 {
		return Result{}, nil, fmt.Errorf("network %s: its plugins gave the pod no address: %w", plan.Network, errdefs.ErrFailedPrecondition)
	}
	if result.Raw, err = json.Marshal(said); err != nil {
		return Result{}, nil, fmt.Errorf("network %s: keep result: %w", plan.Network, err)
	}
	return result, addresses, nil
}

// primaryFirst moves the first IPv4 address to the front: it is the pod's primary address, as containerd has it.
func primaryFirst(ips []netip.Addr) []netip.Addr {
	i := slices.IndexFunc(ips, netip.Addr.Is4)
	if i <= 0 {
		return ips
	}
	return slices.Insert(slices.Delete(slices.Clone(ips), i, i+1), 0, ips[i])
}

// addressesOf takes the addresses of a device of the pod out of a result; those of other interfaces in it are the host's.
func addressesOf(said *types.Result, device string) ([]netip.Addr, []netip.Prefix, error) {
	var ips []netip.Addr
	var addresses []netip.Prefix
	for _, ip := range said.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(said.Interfaces) {
			if owner := said.Interfaces[*i]; owner.Sandbox == "" || owner.Name != device {
				continue
			}
		}
		address, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, nil, fmt.Errorf("address %q in the result of plugins: %w", ip.Address.IP, errdefs.ErrInternal)
		}
		ones, _ := ip.Address.Mask.Size()
		ips = append(ips, address.Unmap())
		addresses = append(addresses, netip.PrefixFrom(address.Unmap(), ones))
	}
	return ips, addresses, nil
}
