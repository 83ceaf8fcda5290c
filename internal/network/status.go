package network

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// statusMaxAge is how old a good answer to STATUS may be. Nothing tells when a plugin changes its mind, so it is asked again
// on request, and at once if it was not ready.
const statusMaxAge = 10 * time.Second

// status is what the plugins of the loaded list answered to STATUS.
type status struct {
	known  bool
	asking bool
	err    error
	at     time.Time
}

// Ready returns nil if pods can be connected, else the reason in words for people. It answers from memory; what may have
// changed is asked in the background.
func (m *Manager) Ready() error {
	m.mu.Lock()
	watched, kubelet := m.watched, m.kubelet
	m.mu.Unlock()
	conf := m.cni.loaded()
	if !watched {
		conf = m.cni.load()
	}
	kind, err := m.choose(conf, kubelet)
	if err != nil {
		return err
	}
	if kind == CNI {
		return m.cni.ready(m.run)
	}
	return m.builtinReady()
}

// builtinReady returns why the built-in network could not be set up, and tries again: no pod comes to a node that is not
// ready, so no pod would find out that it works now.
func (m *Manager) builtinReady() error {
	m.mu.Lock()
	broken, mend := m.broken, m.broken != nil && !m.mending
	m.mending = m.mending || mend
	m.mu.Unlock()
	if mend {
		m.run(func(context.Context) {
			if _, _, err := m.prepareBuiltin(); err != nil {
				m.log.Warn("set up built-in network", "error", err)
			}
			m.mu.Lock()
			m.mending = false
			m.mu.Unlock()
		})
	}
	return broken
}

// prepareBuiltin sets the built-in network up and remembers why that was not possible.
func (m *Manager) prepareBuiltin() (netlink.Link, subnets, error) {
	device, nets, err := m.bridge.prepare()
	if err != nil {
		err = fmt.Errorf("set up built-in network: %w", err)
	}
	m.setBroken(err)
	return device, nets, err
}

func (m *Manager) setBroken(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
}

// ready returns what is known now of the loaded list, without waiting.
func (c *cni) ready(run func(func(context.Context)) bool) error {
	c.refresh(run)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := missingPlugin(c.conf.list, c.bins); err != nil {
		return err
	}
	if since(c.conf.list, statusSince) && !c.status.known {
		return fmt.Errorf("network %s: waiting for the first STATUS of its plugins: %w", c.conf.list.Name, errdefs.ErrUnavailable)
	}
	return c.status.err
}

// refresh asks the plugins of the loaded list for their STATUS in a goroutine of run, unless there is a good answer that is not old.
func (c *cni) refresh(run func(func(context.Context)) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := c.status.known && c.status.err == nil && time.Since(c.status.at) <= statusMaxAge
	if c.conf.list == nil || !since(c.conf.list, statusSince) || c.status.asking || fresh {
		return
	}
	conf := c.conf
	c.status.asking = run(func(ctx context.Context) { c.ask(ctx, conf) })
}

// ask runs STATUS and keeps the answer unless the configuration has changed meanwhile.
func (c *cni) ask(ctx context.Context, conf *configuration) {
	ctx, cancel := c.deadline(ctx, "STATUS")
	defer cancel()
	err := c.lib.GetStatusNetworkList(ctx, conf.list)
	if err != nil {
		err = fmt.Errorf("network %s is not ready: %w", conf.list.Name, classify(err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conf != nil && string(c.conf.raw) == string(conf.raw) {
		c.status = status{known: true, err: err, at: time.Now()}
	}
}
