package hostcheck

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/network"
)

const areaNetwork = "network"

func (f *facts) network(c *config.Config, root bool) {
	builtin := f.choice(c)
	f.forwarding(builtin)
	if !root {
		f.needsRoot(areaNetwork, "links")
		f.needsRoot(areaNetwork, "nftables")
		f.needsRoot(areaNetwork, "guard")
		return
	}
	f.verdict(builtin, "links", "bridges and veth pairs can be made", network.ProbeLinks(),
		"load the modules with: modprobe -a bridge veth")
	f.verdict(builtin, "nftables", "the rules of the built-in network can be made", network.ProbeFirewall(),
		"load the modules with: modprobe -a nf_tables nft_chain_nat nft_masq nft_fib_inet")
	f.guard(builtin)
}

// guard says whether pods of the built-in network are kept from taking each other's addresses.
func (f *facts) guard(builtin bool) {
	err := network.ProbeGuard()
	switch {
	case err == nil:
		f.ok(areaNetwork, "guard", "pods of the built-in network cannot take each other's addresses")
	case builtin:
		f.warn(areaNetwork, "guard", "pods can take each other's addresses: "+err.Error(),
			"use a kernel with CONFIG_NF_TABLES_BRIDGE")
	default:
		f.info(areaNetwork, "guard", err.Error())
	}
}

// choice says which network pods get, and whether it is the built-in one.
func (f *facts) choice(c *config.Config) (builtin bool) {
	got, err := network.Choose(network.Options{
		ConfDir: c.Network.CNIConfDir, BinDirs: c.Network.CNIBinDirs, Builtin: c.Network.Builtin,
		Root: filepath.Join(c.Root, "network"),
	})
	switch {
	case err != nil:
		f.fail(areaNetwork, "pod network", err.Error(),
			`install a CNI network or correct its file, or set network.builtin to "auto" or "always"`)
	case got.Kind == network.Builtin:
		found := "built-in"
		if len(c.Network.BuiltinSubnet) > 0 {
			found += ", " + strings.Join(c.Network.BuiltinSubnet, " and ")
		}
		if c.Network.Builtin == config.BuiltinAuto {
			found += "; " + c.Network.CNIConfDir + " holds no CNI configuration"
		}
		f.ok(areaNetwork, "pod network", found)
		return true
	case len(got.Missing) > 0:
		f.fail(areaNetwork, "pod network", fmt.Sprintf("CNI %q of %s lacks plugins: %s", got.Name, got.File, strings.Join(got.Missing, ", ")),
			"install them into "+strings.Join(c.Network.CNIBinDirs, " or ")+" (Debian: apt install containernetworking-plugins)")
	default:
		f.ok(areaNetwork, "pod network", fmt.Sprintf("CNI %q of %s, with %s", got.Name, got.File, strings.Join(got.Plugins, ", ")))
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
