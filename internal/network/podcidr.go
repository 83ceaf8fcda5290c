package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/atomicfile"
)

// PodCIDR as the only subnet of the built-in network means the range that kubelet announces.
const PodCIDR = "pod-cidr"

const (
	// podCIDRFile below the root of the network holds the range, for the time between a restart and kubelet's next call.
	podCIDRFile = "pod-cidr"
	// maxPodCIDR is more than a range of each family takes.
	maxPodCIDR = 256
)

// SetPodCIDR takes the range of addresses that kubelet has for this node's pods: one, or one of each family with a comma between.
// It is for a built-in network without subnets of its own; any other ignores it. Another range is refused while pods have
// addresses of the former one.
func (m *Manager) SetPodCIDR(cidr string) error {
	if !m.options.followsKubelet() {
		m.log.Info("pod range ignored: the configuration of the network decides", "cidr", cidr)
		return nil
	}
	nets, err := parsePodCIDR(cidr)
	if err != nil {
		return err
	}
	b := m.bridge
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(b.configured, nets) {
		return nil
	}
	if pods := b.connected(); len(b.configured) > 0 && len(pods) > 0 {
		return fmt.Errorf("pod range %q: %d pods have addresses of %v, the first of them %s; remove them to change the range: %w",
			cidr, len(pods), b.configured.texts(), pods[0], errdefs.ErrFailedPrecondition)
	}
	if err := atomicfile.Write(filepath.Join(m.options.Root, podCIDRFile), []byte(cidr+"\n"), 0o600); err != nil {
		return fmt.Errorf("record pod range %q: %w", cidr, err)
	}
	m.log.Info("pod range adopted", "cidr", cidr)
	b.configured, b.nets = nets, nil
	m.announced.Store(true)
	return b.removeLocked() // the next pod makes it with the new addresses
}

// followsKubelet tells whether the built-in network takes its subnets from kubelet.
func (o Options) followsKubelet() bool { return slices.Equal(o.BuiltinSubnet, []string{PodCIDR}) }

func parsePodCIDR(cidr string) (subnets, error) {
	if len(cidr) > maxPodCIDR {
		return nil, fmt.Errorf("pod_cidr: has %d bytes, want at most %d: %w", len(cidr), maxPodCIDR, errdefs.ErrInvalidArgument)
	}
	var texts []string
	for text := range strings.SplitSeq(cidr, ",") {
		texts = append(texts, strings.TrimSpace(text))
	}
	nets, err := parsePrefixes("pod_cidr", texts)
	if err != nil {
		return nil, err
	}
	return nets, nil
}

// recordedPodCIDR returns the range that kubelet has announced before, none if it has not.
func recordedPodCIDR(root string) (subnets, error) {
	data, err := os.ReadFile(filepath.Join(root, podCIDRFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the recorded pod range: %w", err)
	}
	return parsePodCIDR(strings.TrimSpace(string(data)))
}

// connected returns the pods that have an address of the built-in network, in order.
func (b *bridge) connected() []string {
	var pods []string
	for _, held := range b.leases.all() {
		if held.Network == Builtin {
			pods = append(pods, held.Pod)
		}
	}
	slices.Sort(pods)
	return pods
}

func (s subnets) texts() []string {
	texts := make([]string, len(s))
	for i, prefix := range s {
		texts[i] = prefix.String()
	}
	return texts
}

// builtinKind is the built-in network, once its subnets are known.
func (m *Manager) builtinKind() (Kind, error) {
	if m.options.followsKubelet() && !m.announced.Load() {
		return "", fmt.Errorf("network.builtin_subnet is %q, and kubelet has not announced a pod range yet: %w", PodCIDR, errdefs.ErrFailedPrecondition)
	}
	return Builtin, nil
}
