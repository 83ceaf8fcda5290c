package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/berth-runtime/berth/internal/config"
)

const areaPlugins = "plugins"

// pluginFile is how a program in nri.plugin_dir has to be named.
var pluginFile = regexp.MustCompile(`^[0-9]{2}-.`)

// plugins says which NRI plugins can take part in the life of pods.
func (f *facts) plugins(ctx context.Context, c *config.Config) {
	if !c.NRI.Enabled {
		f.info(areaPlugins, "NRI", "off, by nri.enabled")
		return
	}
	found := "plugins of " + c.NRI.PluginDir + " only, by nri.disable_connections"
	if socket := c.NRISocket(); socket != "" {
		found = "plugins connect to " + socket
		dialer := net.Dialer{Timeout: time.Second}
		if conn, err := dialer.DialContext(ctx, "unix", socket); err == nil {
			found += ", which is served now"
			err = conn.Close()
			if err != nil {
				found += fmt.Sprintf(" (%v)", err)
			}
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
			f.warn(areaPlugins, "plugin_dir", fmt.Sprintf("%s is no name of a plugin, so none is started", filepath.Join(c.NRI.PluginDir, e.Name())),
				"name it NN-NAME, as 10-limits, or move it away")
			return
		}
		names = append(names, e.Name())
	}
	if len(names) > 0 {
		f.ok(areaPlugins, "plugin_dir", "starts "+strings.Join(names, ", "))
	}
}
