package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/internal/namespace"
)

// collectTimeout bounds the GC of plugins; pods that come meanwhile wait for it.
const collectTimeout = 10 * time.Second

// Check reports whether a pod is still connected as planned: nil, or what is wrong. Plugins are asked if their version of
// the specification has CHECK.
func (m *Manager) Check(ctx context.Context, pod Pod, plan Plan) error {
	err := pod.validate()
	if err == nil && !namespace.Exists(pod.NetNS) {
		err = fmt.Errorf("network namespace %s: %w", pod.NetNS, errdefs.ErrNotFound)
	}
	switch {
	case err != nil:
	case plan.Kind == CNI:
		err = m.cni.check(ctx, pod, plan)
	case m.leases.get(pod.ID) == nil:
		err = fmt.Errorf("network lease: %w", errdefs.ErrNotFound)
	default:
		if _, err = netlink.LinkByName(vethName(pod.ID)); errors.As(err, new(netlink.LinkNotFoundError)) {
			err = fmt.Errorf("device %s: %w", vethName(pod.ID), errdefs.ErrNotFound)
		}
	}
	if err != nil {
		return fmt.Errorf("check network of pod %s: %w", pod, err)
	}
	return nil
}

// Collect disconnects whatever belongs to sandboxes that are not live: leases, devices, attachments of plugins. Pods which
// this process is connecting, or has connected and not disconnected, are live without being named. It also makes the host
// ports of live pods again if another program has flushed the firewall.
func (m *Manager) Collect(ctx context.Context, live map[string]bool) error {
	// What is there is listed before who owns it: a pod that comes in between is not taken for a gone one.
	leases := m.leases.all()
	cached, err := m.cni.attachments()
	if err != nil {
		return fmt.Errorf("collect network garbage: %w", err)
	}
	devices, err := m.bridge.devices()
	if err != nil {
		return fmt.Errorf("collect network garbage: %w", err)
	}
	live = m.withAttached(live)
	errs := []error{m.cni.removeStale(ctx, cached, live)}
	for _, held := range leases {
		if live[held.ID] {
			continue
		}
		if held.Network == Builtin {
			errs = append(errs, m.Detach(ctx, Pod{ID: held.ID, Name: held.Pod}, Plan{Kind: Builtin}))
		} else if !m.cni.knows(held.ID) {
			errs = append(errs, m.giveBack(held.ID))
		}
	}
	errs = append(errs, m.bridge.removeStrays(devices, live), m.collectPlugins(ctx, live))
	if len(m.leases.all()) > 0 {
		errs = append(errs, m.firewall.restore(), m.guard.restore())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("collect network garbage: %w", err)
	}
	return nil
}

// collectPlugins tells plugins which attachments are valid, if this daemon is the only one on the host: they would take away
// those of another daemon with the same network. It is left for the next time while pods are being connected.
func (m *Manager) collectPlugins(ctx context.Context, live map[string]bool) error {
	if m.options.Instance != "" || !m.collecting.TryLock() {
		return nil
	}
	defer m.collecting.Unlock()
	ctx, cancel := context.WithTimeout(ctx, collectTimeout)
	defer cancel()
	return m.cni.collect(ctx, m.withAttached(live))
}

// withAttached adds the pods in the hands of this process.
func (m *Manager) withAttached(live map[string]bool) map[string]bool {
	all := maps.Clone(live)
	if all == nil {
		all = map[string]bool{}
	}
	maps.DeleteFunc(all, func(_ string, lives bool) bool { return !lives })
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.attached {
		all[id] = true
	}
	return all
}
