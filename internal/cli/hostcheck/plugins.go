package hostcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/berth-runtime/berth/internal/config"
)

const areaPlugins = "plugins"

// pluginFile is how a program in nri.plugin_dir has to be named.
var pluginFile = regexp.MustCompile(`^[0-9]{2}-.`)

// plugins says which NRI plugins can take part in the life of pods.
func (f *facts) plugins(c *config.Config) {
	if !c.NRI.Enabled {
		f.info(areaPlugins, "NRI", "off, by nri.enabled")
		return
	}
	found := "plugins of " + c.NRI.PluginDir + " only, by nri.disable_connections"
	if socket := c.NRISocket(); socket != "" {
		found = "plugins connect to " + socket
		if listens(socket) {
			found += ", which is served now"
		}
	}
	f.ok(areaPlugins, "NRI", found)
	entries, err := os.ReadDir(c.NRI.PluginDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.warn(areaPlugins, "plugin_dir", err.Error(), "correct nri.plugin_dir")
		return
	}
	var names []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || e.IsDir() || info.Mode()&0o111 == 0 {
			continue
		}
		if !pluginFile.MatchString(e.Name()) {
			f.warn(areaPlugins, "plugin_dir", fmt.Sprintf("%s is not a plugin name; ignored", filepath.Join(c.NRI.PluginDir, e.Name())),
				"name it NN-NAME, as 10-limits, or move it away")
			return
		}
		names = append(names, e.Name())
	}
	if len(names) > 0 {
		f.ok(areaPlugins, "plugin_dir", "starts "+strings.Join(names, ", "))
	}
}

// Of a line of the kernel's table of unix sockets: its flags, the one that says that it accepts connections, and its path, if
// it has one.
const (
	socketFlags  = 3
	acceptsFlag  = 1 << 16
	socketFields = 8
)

// listens reports whether a process listens on a unix socket. It does not connect: that would look like a failing plugin.
func listens(socket string) bool {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < socketFields || !strings.HasSuffix(strings.TrimSuffix(line, "\n"), " "+socket) {
			continue
		}
		if flags, err := strconv.ParseUint(fields[socketFlags], 16, 32); err == nil && flags&acceptsFlag != 0 {
			return true
		}
	}
	return false
}
