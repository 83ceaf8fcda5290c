package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// maxConfigSize bounds a CNI configuration file; a conflist goes to each plugin on its stdin and into each pod's record.
const maxConfigSize = 1 << 20

// configuration is what the CNI configuration directory said when it was read last. It is immutable.
type configuration struct {
	signature string                    // of the files that were read
	list      *libcni.NetworkConfigList // nil if there is none
	raw       json.RawMessage           // the list, complete
	file      string                    // where list is from
	err       error                     // why there is no list although there are files
	skipped   []error                   // files before the chosen one that are unusable
}

// readConfiguration reads the directory: the first usable file in the order of their names counts, as in other runtimes. It
// returns previous if nothing has changed since.
func readConfiguration(dir string, previous *configuration) *configuration {
	files, signature, err := configurationFiles(dir)
	if err != nil {
		signature = err.Error()
	}
	if previous != nil && previous.signature == signature {
		return previous
	}
	c := &configuration{signature: signature, err: err}
	if err != nil {
		c.skipped = []error{err}
		return c
	}
	for _, file := range files {
		list, raw, err := readConflist(file)
		if err == nil {
			c.list, c.raw, c.file = list, raw, file
			return c
		}
		c.skipped = append(c.skipped, fmt.Errorf("CNI configuration %s: %w", file, err))
	}
	c.err = errors.Join(c.skipped...)
	return c
}

// configurationFiles lists the files in dir that count, and a text that changes when one of them does. Plugins can be in
// directories that are named after the network (CNI 1.1), so these are part of the text.
func configurationFiles(dir string) ([]string, string, error) {
	var files []string
	var signature strings.Builder
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // the directory is not there, or the file is gone again
		}
		if err != nil {
			return err
		}
		depth := strings.Count(strings.TrimPrefix(path, dir), string(filepath.Separator))
		if entry.IsDir() && depth > 1 {
			return filepath.SkipDir
		}
		if entry.IsDir() || !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(path)) {
			return nil
		}
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() {
			return nil //nolint:nilerr // a dangling link counts as no file
		}
		fmt.Fprintf(&signature, "%s %d %s\n", path, info.Size(), info.ModTime().Format(time.RFC3339Nano))
		if depth == 1 {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("read CNI configuration: %w", err)
	}
	slices.Sort(files)
	return files, signature.String(), nil
}

// readConflist reads a list, or a single plugin's configuration as a list of one.
func readConflist(file string) (*libcni.NetworkConfigList, json.RawMessage, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, nil, err
	}
	if info.Size() > maxConfigSize {
		return nil, nil, fmt.Errorf("%d bytes is too large", info.Size())
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	list, err := parseConflist(raw)
	if err != nil {
		return nil, nil, err
	}
	if filepath.Ext(file) == ".conflist" && !list.LoadOnlyInlinedPlugins {
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(file), list.Name)
		if err != nil {
			return nil, nil, err
		}
		list.Plugins = append(list.Plugins, more...)
	}
	if len(list.Plugins) == 0 {
		return nil, nil, errors.New("no plugins")
	}
	complete, err := completeConflist(list)
	if err != nil {
		return nil, nil, err
	}
	list.Bytes = complete
	return list, complete, nil
}

// parseConflist parses a list or the older form of a single plugin, and validates what libcni would find out only when a
// pod is there.
func parseConflist(raw []byte) (*libcni.NetworkConfigList, error) {
	var form struct {
		Type    string          `json:"type"`
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(raw, &form); err != nil {
		return nil, err
	}
	var list *libcni.NetworkConfigList
	var err error
	if form.Type != "" && form.Plugins == nil {
		list, err = singlePlugin(raw)
	} else {
		list, err = libcni.NetworkConfFromBytes(raw)
	}
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, err
	}
	if list.CNIVersion == "" {
		list.CNIVersion = "0.1.0" // what the specification says of a file without one
	}
	if newer, err := version.GreaterThan(list.CNIVersion, version.Current()); err != nil {
		return nil, fmt.Errorf("cniVersion %q: %w", list.CNIVersion, err)
	} else if newer {
		return nil, fmt.Errorf("cniVersion %s is newer than %s", list.CNIVersion, version.Current())
	}
	for i, plugin := range list.Plugins {
		if plugin == nil || plugin.Network == nil || plugin.Network.Type == "" {
			return nil, fmt.Errorf("plugin %d has no type", i)
		}
	}
	return list, nil
}

func singlePlugin(raw []byte) (*libcni.NetworkConfigList, error) {
	plugin, err := libcni.NetworkPluginConfFromBytes(raw)
	if err != nil {
		return nil, err
	}
	list := &libcni.NetworkConfigList{
		Name: plugin.Network.Name, CNIVersion: plugin.Network.CNIVersion, LoadOnlyInlinedPlugins: true,
		Plugins: []*libcni.PluginConfig{plugin}, Bytes: raw,
	}
	return list, nil
}

// completeConflist writes a list that needs no other file.
func completeConflist(list *libcni.NetworkConfigList) (json.RawMessage, error) {
	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, plugin := range list.Plugins {
		plugins[i] = plugin.Bytes
	}
	raw, err := json.Marshal(map[string]any{
		"cniVersion": list.CNIVersion, "name": list.Name, "disableCheck": list.DisableCheck, "disableGC": list.DisableGC,
		"loadOnlyInlinedPlugins": true, "plugins": plugins,
	})
	if err != nil {
		return nil, fmt.Errorf("write CNI configuration: %w", err)
	}
	return raw, nil
}

// claims reports whether a plugin of the list says that it takes a capability.
func claims(list *libcni.NetworkConfigList, capability string) bool {
	return slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[capability] })
}

// opensHostPorts reports whether a plugin of the list opens host ports.
func opensHostPorts(list *libcni.NetworkConfigList) bool {
	return claims(list, capabilityPorts) ||
		slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Type == ciliumPlugin })
}

// pluginTypes lists the plugins that a list runs, those for addresses included.
func pluginTypes(list *libcni.NetworkConfigList) []string {
	var names []string
	for _, plugin := range list.Plugins {
		for _, name := range []string{plugin.Network.Type, ipamOf(plugin.Network)} {
			if name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

func ipamOf(conf *types.PluginConf) string {
	return conf.IPAM.Type
}

// missingPlugin returns an error that names a plugin of the list that is not installed.
func missingPlugin(list *libcni.NetworkConfigList, dirs []string) error {
	for _, name := range pluginTypes(list) {
		if _, err := (&plugins{}).FindInPath(name, dirs); err != nil {
			return fmt.Errorf("network %s: %w", list.Name, err)
		}
	}
	return nil
}

// errNotForKubelet says that pods of a kubelet wait for a CNI configuration.
func errNotForKubelet(dir string) error {
	return fmt.Errorf("no CNI configuration in %s, and network.builtin \"auto\" serves no pods of a kubelet: install a CNI network, or set network.builtin to \"always\": %w",
		dir, errdefs.ErrFailedPrecondition)
}

// errNoConfiguration says that there is no CNI configuration at all.
func errNoConfiguration(dir string) error {
	return fmt.Errorf("no CNI configuration in %s and the built-in network is switched off: %w", dir, errdefs.ErrFailedPrecondition)
}
