package network

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/namespace"
)

// Choice is the network that pods get, as far as the configuration tells.
type Choice struct {
	// Kind says what connects pods.
	Kind Kind
	// Name and File are those of the CNI network.
	Name, File string
	// Plugins are those that the CNI network needs, Missing those of them that are not installed.
	Plugins, Missing []string
}

// Choose reads which network a manager with these options would connect pods to. It makes nothing. The error says why there
// is none.
func Choose(options Options) (Choice, error) {
	conf := readConfiguration(options.ConfDir, nil)
	kind, err := (&Manager{options: options}).choose(conf, kubeletKnown(options.Root))
	if err != nil || kind == Builtin {
		return Choice{Kind: kind}, err
	}
	choice := Choice{Kind: kind, Name: conf.list.Name, File: conf.file, Plugins: pluginTypes(conf.list)}
	for _, name := range choice.Plugins {
		if _, err := (&plugins{}).FindInPath(name, options.BinDirs); err != nil {
			choice.Missing = append(choice.Missing, name)
		}
	}
	return choice, nil
}

// ProbeLinks tries whether this host can make the devices of the built-in network. It needs root and leaves nothing.
func ProbeLinks() error {
	return namespace.DoNew(func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("connect to rtnetlink: %w", err)
		}
		defer handle.Close()
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}}
		if err := handle.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe1"}, PeerName: "probe2"}
		if err := handle.LinkAdd(veth); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		return nil
	})
}

// ProbeFirewall tries whether this host takes the rules of the built-in network. It needs root and leaves nothing.
func ProbeFirewall() error {
	return namespace.DoNew(func() error {
		nets, err := parseSubnets([]string{"192.0.2.0/24", "2001:db8::/64"})
		if err != nil {
			return err
		}
		f := &firewall{table: plainName, bridge: "probe0", leases: &leaseStore{}}
		return errors.Join(f.serve(nets), f.close())
	})
}

// ProbeGuard tries whether this host can keep pods of the built-in network from taking each other's addresses. It needs root
// and leaves nothing.
func ProbeGuard() error {
	return namespace.DoNew(func() error {
		f := &firewall{table: plainName, bridge: "probe0", leases: &leaseStore{}}
		g := &guard{firewall: f, log: slog.New(slog.DiscardHandler)}
		f.mu.Lock()
		err := g.rebuild("")
		f.mu.Unlock()
		return errors.Join(err, f.close())
	})
}
