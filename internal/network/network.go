// Package network connects pods: by CNI plugins if a configuration for them is installed, else by a bridge network of its
// own, for which it needs no other program.
//
// The caller makes a [Plan], stores it, calls [Manager.Attach], and owes a [Manager.Detach] from then on, whatever Attach
// said, until Detach succeeds once. What a pod holds of the node (addresses of the built-in network, host ports) is in a
// lease, which is written before anything is used and removed when nothing is used any more. Host ports are ours for the
// built-in network and for conflists without a plugin that claims the capability portMappings.
//
// Locks: bridge.mu before firewall.mu before leaseStore.mu. While a plugin runs only Manager.collecting is held.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"

	"github.com/berth-runtime/berth/internal/namespace"
)

// When the built-in network is used.
const (
	BuiltinAuto   = "auto"   // if there is no CNI configuration
	BuiltinAlways = "always" // even if there is one
	BuiltinNever  = "never"  // pods wait for a CNI configuration
)

// Who opens host ports of pods in CNI networks.
const (
	HostPortsAuto  = "auto"  // a plugin that can, else Berth
	HostPortsNever = "never" // the network
)

const (
	// DefaultPluginTimeout bounds one call of all plugins of a network. Some wait for a controller in the cluster.
	DefaultPluginTimeout = 90 * time.Second
	// undoTimeout bounds taking back a failed Attach. The caller's own time is often over by then.
	undoTimeout = 15 * time.Second
	// maxInstance keeps the name of the bridge below IFNAMSIZ.
	maxInstance = 8
	plainName   = "berth"
)

// Options configure a [Manager].
type Options struct {
	ConfDir       string        // of CNI configurations; need not exist
	BinDirs       []string      // of CNI plugins
	Builtin       string        // BuiltinAuto (also if empty), BuiltinAlways or BuiltinNever
	BuiltinSubnet []string      // at most one of each family, or PodCIDR; empty: chosen by Instance
	Root          string        // where leases and the cache of CNI results are kept
	HostPorts     string        // HostPortsAuto (also if empty) or HostPortsNever
	Instance      string        // tells daemons on one host apart; empty for the one with the default root
	PluginTimeout time.Duration // 0: DefaultPluginTimeout
	Log           *slog.Logger
}

// Manager connects and disconnects pods. Its methods can be called at the same time, but for one pod only one by one.
type Manager struct {
	options  Options
	cni      *cni
	bridge   *bridge
	firewall *firewall
	guard    *guard
	leases   *leaseStore
	log      *slog.Logger

	ctx    context.Context // of the goroutines
	cancel context.CancelFunc
	work   sync.WaitGroup

	// collecting is held for reading while plugins connect a pod, and for writing while they collect garbage, which must
	// not take a pod for gone that has come after the list of live ones was made. The writing side never waits long:
	// it is taken only when free, and has a deadline.
	collecting sync.RWMutex

	unplugging chan struct{} // has a place for each device that may be deleted at once

	mu       sync.Mutex
	closed   bool
	watched  bool                     // changes of the configuration directory are seen
	attached map[string]bool          // pods that this process has begun to connect and not yet disconnected
	leaving  map[string]chan struct{} // closed when the pod's device is gone
	broken   error                    // why the built-in network could not be set up when it was last tried
	mending  bool                     // a goroutine tries again
	kubelet  bool                     // a kubelet uses this node

	announced atomic.Bool // kubelet has announced a pod range, now or before
}

// New opens a manager and makes the host ports of the pods that are connected as they should be. It makes nothing else on
// the host: the bridge comes with the first pod.
func New(ctx context.Context, options Options) (*Manager, error) {
	m, err := newManager(options)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	if m.leases, err = openLeaseStore(filepath.Join(options.Root, "leases"), m.log); err != nil {
		return nil, err
	}
	m.firewall.leases, m.bridge.leases = m.leases, m.leases
	m.kubelet = kubeletKnown(options.Root)
	m.ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := m.cni.removeStandIns(ctx); err != nil {
		return nil, err
	}
	m.cni.load()
	m.cni.refresh(m.run)
	if len(m.leases.all()) > 0 {
		// Pods can be served without it; the next one that needs it will tell its caller.
		m.setBroken(errors.Join(m.firewall.restore(), m.guard.restore()))
	}
	if err := m.watch(); err != nil {
		m.log.Warn("changes of the CNI configuration are looked up when needed", "dir", options.ConfDir, "error", err)
	}
	return m, nil
}

func newManager(options Options) (*Manager, error) {
	switch options.Builtin {
	case "":
		options.Builtin = BuiltinAuto
	case BuiltinAuto, BuiltinAlways, BuiltinNever:
	default:
		return nil, fmt.Errorf("builtin %q: want auto, always or never: %w", options.Builtin, errdefs.ErrInvalidArgument)
	}
	if len(options.Instance) > maxInstance || strings.ContainsAny(options.Instance, "/ .") {
		return nil, fmt.Errorf("instance %q: want at most %d letters and digits: %w", options.Instance, maxInstance, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(options.Root) {
		return nil, fmt.Errorf("network root %q: must be an absolute path: %w", options.Root, errdefs.ErrInvalidArgument)
	}
	var nets subnets
	var err error
	if options.followsKubelet() {
		nets, err = recordedPodCIDR(options.Root)
	} else {
		nets, err = parseSubnets(options.BuiltinSubnet)
	}
	if err != nil {
		return nil, err
	}
	if options.PluginTimeout == 0 {
		options.PluginTimeout = DefaultPluginTimeout
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	name, table := plainName+"0", plainName
	if options.Instance != "" {
		name, table = plainName+"-"+options.Instance, plainName+"-"+options.Instance
	}
	m := &Manager{options: options, log: options.Log, attached: map[string]bool{}, leaving: map[string]chan struct{}{}, unplugging: make(chan struct{}, maxLeaving)}
	m.firewall = &firewall{table: table, bridge: name}
	m.announced.Store(len(nets) > 0)
	m.guard = &guard{firewall: m.firewall, log: options.Log}
	m.bridge = &bridge{name: name, instance: options.Instance, configured: nets, firewall: m.firewall, guard: m.guard}
	m.cni = &cni{
		dir: options.ConfDir, bins: options.BinDirs, timeout: options.PluginTimeout, log: options.Log,
		placeholders: filepath.Join(options.Root, "stand-in"), hostPorts: options.HostPorts != HostPortsNever,
		uncached: libcni.NewCNIConfigWithCacheDir(options.BinDirs, filepath.Join(options.Root, "uncached"), &plugins{}),
		lib:      libcni.NewCNIConfigWithCacheDir(options.BinDirs, filepath.Join(options.Root, "cni"), &plugins{}),
	}
	return m, nil
}

// Close ends what the manager does in the background. Pods stay connected. If there are none, the bridge and the nftables
// table of this daemon are removed.
func (m *Manager) Close() error {
	m.mu.Lock()
	already := m.closed
	m.closed = true
	m.mu.Unlock()
	if already {
		return nil
	}
	m.cancel()
	m.work.Wait()
	var err error
	if len(m.leases.all()) == 0 {
		err = errors.Join(m.firewall.remove(), m.bridge.remove(), m.guard.remove())
	}
	return errors.Join(err, m.bridge.close(), m.firewall.close())
}

// Plan decides how a pod will be connected. It changes nothing.
func (m *Manager) Plan(pod Pod) (Plan, error) {
	if err := pod.validate(); err != nil {
		return Plan{}, err
	}
	if pod.Kubelet {
		m.SawKubelet("a pod of kubelet")
	}
	conf := m.cni.load()
	kind, err := m.choose(conf, pod.Kubelet)
	if err != nil {
		return Plan{}, fmt.Errorf("set up network for pod %s: %w", pod, err)
	}
	if kind == CNI {
		return m.cni.plan(conf), nil
	}
	return Plan{Kind: Builtin, Network: m.bridge.name, IfName: podDevice, HostPorts: true}, nil
}

// choose says which kind of network new pods get under a configuration: those of a kubelet, or others.
func (m *Manager) choose(conf *configuration, kubelet bool) (Kind, error) {
	switch {
	case m.options.Builtin == BuiltinAlways:
		return m.builtinKind()
	case conf.list != nil:
		return CNI, nil
	case conf.err != nil:
		// The node is meant to use CNI: a typing error must not put pods into another network.
		return "", fmt.Errorf("%w: %w", conf.err, errdefs.ErrFailedPrecondition)
	case m.options.Builtin == BuiltinNever:
		return "", errNoConfiguration(m.options.ConfDir)
	case kubelet:
		return "", errNotForKubelet(m.options.ConfDir)
	default:
		return m.builtinKind()
	}
}

// Attach connects a pod as planned. If it fails, it has tried to leave nothing behind, and Detach is owed all the same. It
// can be called again for the same pod: the pod gets the same addresses from the built-in network.
//
// A host port that another pod has is an [errdefs.ErrAlreadyExists] that names the pod. Plugins that do not answer in time
// are killed, the error is a [context.DeadlineExceeded].
func (m *Manager) Attach(ctx context.Context, pod Pod, plan Plan) (Result, error) {
	if err := pod.validate(); err != nil {
		return Result{}, err
	}
	if !namespace.Exists(pod.NetNS) {
		return Result{}, fmt.Errorf("set up network for pod %s: network namespace %s: %w", pod, pod.NetNS, errdefs.ErrNotFound)
	}
	m.begin(pod.ID)
	result, err := m.attach(ctx, pod, plan)
	if err == nil {
		err = namespace.ApplyLinkSysctls(pod.NetNS, pod.Sysctls)
	}
	if err == nil {
		return result, nil
	}
	err = fmt.Errorf("set up network for pod %s: %w", pod, err)
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if left := m.Detach(undo, pod, plan); left != nil {
		err = errors.Join(err, left)
	}
	return Result{}, err
}

func (m *Manager) attach(ctx context.Context, pod Pod, plan Plan) (Result, error) {
	ports, err := pod.hostPorts()
	if err != nil {
		return Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	switch plan.Kind {
	case Builtin:
		return m.joinBuiltin(ctx, pod, ports)
	case CNI:
		return m.attachCNI(ctx, pod, plan, ports)
	default:
		return Result{}, fmt.Errorf("plan of kind %q: %w", plan.Kind, errdefs.ErrInvalidArgument)
	}
}

// attachCNI runs the plugins, and opens host ports if none of them does.
func (m *Manager) attachCNI(ctx context.Context, pod Pod, plan Plan, ports []port) (Result, error) {
	if len(ports) > 0 {
		// A lease even if the ports are not ours: it is how two pods with the same port are distinguished.
		want := lease{ID: pod.ID, Pod: pod.String(), Network: CNI, Ports: ports, Published: plan.HostPorts}
		if _, err := m.leases.claim(want, nil); err != nil {
			return Result{}, err
		}
	}
	m.collecting.RLock()
	result, addresses, err := m.cni.attach(ctx, pod, plan)
	m.collecting.RUnlock()
	if err != nil || !plan.HostPorts || len(ports) == 0 {
		return result, err
	}
	if err := checkServed(ports, addresses); err != nil {
		return Result{}, err
	}
	if err := m.openPorts(pod.ID, addresses); err != nil {
		return Result{}, err
	}
	return result, m.flushFlows(pod.ID)
}

func (m *Manager) openPorts(id string, addresses []netip.Prefix) error {
	held, err := m.leases.address(id, addresses)
	if err != nil {
		return err
	}
	if err := routeTo(addresses); err != nil {
		return err
	}
	return m.firewall.publish(held)
}

// flushFlows makes connections that clients believe in find a new pod.
func (m *Manager) flushFlows(id string) error {
	if held := m.leases.get(id); held != nil {
		return forgetFlows(held)
	}
	return nil
}

// Detach disconnects a pod and gives back what it held. It is idempotent, works when the network namespace is gone, and
// after a failure can be repeated. Nil means that the pod is out of the network and its host ports are free; its device of
// the built-in network may take some milliseconds more to vanish, and keeps its address until then.
func (m *Manager) Detach(ctx context.Context, pod Pod, plan Plan) error {
	var err error
	switch plan.Kind {
	case "": // never planned, so never attached
	case Builtin:
		err = m.leaveBuiltin(pod.ID)
	case CNI:
		if err = m.cni.detach(ctx, pod, plan); err == nil {
			err = m.giveBack(pod.ID)
		} else {
			err = errors.Join(err, m.closePorts(pod.ID)) // the ports all the same
		}
	default:
		err = fmt.Errorf("plan of kind %q: %w", plan.Kind, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("take down network of pod %s: %w", pod, err)
	}
	return nil
}

// begin marks a pod as in the hands of this process.
func (m *Manager) begin(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attached[id] = true
}

// run starts a goroutine that Close ends and waits for. It does not after Close.
func (m *Manager) run(fn func(context.Context)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.work.Go(func() { fn(m.ctx) })
	}
	return !m.closed
}
