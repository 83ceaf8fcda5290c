package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	types "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/berth-runtime/berth/internal/namespace"
)

// A placeholder is a network namespace made for a DEL whose pod has lost its own, or the device in it. The plugins bridge and
// ptp read the addresses that they masquerade off that device, up to release 1.5 at least; without it their rules stay in
// the host's packet filter for good.

// withStandIns runs DEL for a pod that has lost its device once for each of its addresses, if the plugins of the list need
// that. One by one, as the plugins give up at the first rule that is gone already. What they say of it does not matter: it
// is for the DEL without a namespace, which follows, to succeed or fail.
func (c *cni) withStandIns(ctx context.Context, list *libcni.NetworkConfigList, rt libcni.RuntimeConf) error {
	if !masquerades(list) || hasDevice(rt) {
		return nil
	}
	var errs []error
	for _, address := range c.remembered(list, rt) { // none if ADD did not succeed
		dir := filepath.Join(c.placeholders, rt.ContainerID)
		paths, err := namespace.Create(ctx, namespace.Request{Dir: dir, Net: true})
		if err == nil {
			err = namespace.Do(paths.Net, func() error { return makePlaceholder(rt.IfName, address) })
			if err == nil {
				rt.NetNS = paths.Net
				if err := c.uncached.DelNetworkList(ctx, list, &rt); err != nil {
					c.log.Debug("remove rules of a pod without its device", "pod", rt.ContainerID, "address", address, "error", err)
				}
			}
			err = errors.Join(err, namespace.Remove(ctx, dir))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("stand in for lost device with %s: %w", address, err))
		}
	}
	return errors.Join(errs...)
}

// removeStandIns takes away what interrupted calls have left.
func (c *cni) removeStandIns(ctx context.Context) error {
	entries, err := os.ReadDir(c.placeholders)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove placeholder namespaces: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		errs = append(errs, namespace.Remove(ctx, filepath.Join(c.placeholders, entry.Name())))
	}
	return errors.Join(errs...)
}

// masquerades reports whether a list has one of the plugins with this habit, and uses it.
func masquerades(list *libcni.NetworkConfigList) bool {
	for _, plugin := range list.Plugins {
		var conf struct {
			IPMasq bool `json:"ipMasq"`
		}
		if t := plugin.Network.Type; t != "bridge" && t != "ptp" {
			continue
		}
		if json.Unmarshal(plugin.Bytes, &conf) == nil && conf.IPMasq {
			return true
		}
	}
	return false
}

func hasDevice(rt libcni.RuntimeConf) bool {
	return namespace.Do(rt.NetNS, func() error {
		_, err := netlink.LinkByName(rt.IfName)
		return err
	}) == nil
}

// remembered returns the addresses that a pod was given, as the cache knows.
func (c *cni) remembered(list *libcni.NetworkConfigList, rt libcni.RuntimeConf) []netip.Prefix {
	answer, err := c.lib.GetNetworkListCachedResult(list, &rt)
	if err != nil || answer == nil {
		return nil
	}
	said, err := types.NewResultFromResult(answer)
	if err != nil {
		return nil
	}
	_, addresses, err := addressesOf(said, rt.IfName)
	if err != nil {
		return nil
	}
	return addresses
}

// makePlaceholder makes a device with an address in the namespace of the calling thread.
func makePlaceholder(name string, address netip.Prefix) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "peer"}); err != nil {
		return fmt.Errorf("make device %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up device %s: %w", name, err)
	}
	if err := addAddress(netlink.AddrAdd, link, address); err != nil {
		return fmt.Errorf("give %s address %s: %w", name, address, err)
	}
	return nil
}
