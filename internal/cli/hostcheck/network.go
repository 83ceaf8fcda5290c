package hostcheck

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/config"
)

const areaNetwork = "network"

func (f *facts) network(c *config.Config, root bool) {
	builtin := f.cni(c)
	f.forwarding(builtin)
	if !root {
		f.needsRoot(areaNetwork, "links")
		f.needsRoot(areaNetwork, "nftables")
		return
	}
	f.links(builtin)
	f.nftables(builtin)
}

// cni says which network pods get, and whether it is the built-in one.
func (f *facts) cni(c *config.Config) (builtin bool) {
	if c.Network.Builtin == config.BuiltinAlways {
		f.ok(areaNetwork, "pod network", "built-in, "+strings.Join(c.Network.BuiltinSubnet, " and "))
		return true
	}
	files, err := libcni.ConfFiles(c.Network.CNIConfDir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		f.fail(areaNetwork, "pod network", err.Error(), "make "+c.Network.CNIConfDir+" readable")
		return false
	}
	if len(files) == 0 {
		if c.Network.Builtin == config.BuiltinAuto {
			f.ok(areaNetwork, "pod network", "built-in, "+strings.Join(c.Network.BuiltinSubnet, " and ")+
				"; "+c.Network.CNIConfDir+" holds no configuration")
			return true
		}
		f.fail(areaNetwork, "pod network", c.Network.CNIConfDir+" holds no configuration",
			`install a CNI network, or set network.builtin to "auto"`)
		return false
	}
	slices.Sort(files)
	f.conflist(c, files[0])
	return false
}

// conflist looks whether the plugins of a network are there.
func (f *facts) conflist(c *config.Config, file string) {
	list, err := loadConf(file)
	if err != nil {
		f.fail(areaNetwork, "pod network", fmt.Sprintf("%s: %v", file, err), "correct the file, or move it away")
		return
	}
	var have, missing []string
	for _, p := range list.Plugins {
		for _, kind := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if kind == "" || slices.Contains(have, kind) || slices.Contains(missing, kind) {
				continue
			}
			if hasPlugin(c.Network.CNIBinDirs, kind) {
				have = append(have, kind)
			} else {
				missing = append(missing, kind)
			}
		}
	}
	found := fmt.Sprintf("CNI %q of %s, with %s", list.Name, file, strings.Join(have, ", "))
	if len(missing) > 0 {
		f.fail(areaNetwork, "pod network", found+"; missing: "+strings.Join(missing, ", "),
			"install the plugins into "+strings.Join(c.Network.CNIBinDirs, " or ")+" (Debian: apt install containernetworking-plugins)")
		return
	}
	f.ok(areaNetwork, "pod network", found)
}

func loadConf(file string) (*libcni.NetworkConfigList, error) {
	if strings.HasSuffix(file, ".conflist") {
		return libcni.ConfListFromFile(file)
	}
	// A single plugin is not supported by the latest specification, but by
	// every runtime, and there are networks that still come so.
	conf, err := libcni.ConfFromFile(file) //nolint:staticcheck // see above
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(conf) //nolint:staticcheck // see above
}

func hasPlugin(dirs []string, name string) bool {
	for _, dir := range dirs {
		info, err := os.Stat(filepath.Join(dir, name))
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}

func (f *facts) forwarding(builtin bool) {
	for _, v := range []struct{ name, file string }{
		{"IPv4 forwarding", "/proc/sys/net/ipv4/ip_forward"},
		{"IPv6 forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"},
	} {
		text, err := os.ReadFile(v.file)
		switch {
		case isMissing(err):
			f.info(areaNetwork, v.name, "the kernel has no such protocol")
		case err != nil:
			f.warn(areaNetwork, v.name, err.Error(), "mount /proc")
		case strings.TrimSpace(string(text)) == "1":
			f.ok(areaNetwork, v.name, "on")
		case builtin:
			f.info(areaNetwork, v.name, "off; the built-in network turns it on")
		default:
			f.warn(areaNetwork, v.name, "off", "unless your CNI network does it, turn it on with: sysctl -w "+sysctlName(v.file)+"=1")
		}
	}
}

func sysctlName(file string) string {
	return strings.ReplaceAll(strings.TrimPrefix(file, "/proc/sys/"), "/", ".")
}

// inNewNetwork runs fn in a network namespace that ends with it.
func inNewNetwork(fn func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return fn()
	})
}

// verdict notes a thing that the built-in network cannot do without, and that
// CNI networks may need.
func (f *facts) verdict(builtin bool, name, works string, err error, remedy string) {
	switch {
	case err == nil:
		f.ok(areaNetwork, name, works)
	case builtin:
		f.fail(areaNetwork, name, err.Error(), remedy)
	default:
		f.warn(areaNetwork, name, err.Error(), remedy+"; your CNI network may do without")
	}
}

func (f *facts) links(builtin bool) {
	err := inNewNetwork(func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer handle.Close()
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "check0"}}
		if err := handle.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "check1"}, PeerName: "check2"}
		if err := handle.LinkAdd(veth); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		return nil
	})
	f.verdict(builtin, "links", "bridges and veth pairs can be made", err, "load the modules with: modprobe -a bridge veth")
}

func (f *facts) nftables(builtin bool) {
	err := inNewNetwork(func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "berth-check"})
		conn.AddChain(&nftables.Chain{
			Name: "nat", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("make a NAT chain: %w", err)
		}
		return nil
	})
	f.verdict(builtin, "nftables", "NAT chains can be made", err, "load the modules with: modprobe -a nf_tables nft_chain_nat nft_masq")
}
