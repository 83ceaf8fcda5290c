package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/directory"
	"github.com/berth-runtime/berth/internal/warning"
)

const (
	zoneDir       = "/usr/share/zoneinfo"
	hostLocaltime = "/etc/localtime"
	// maxZone bounds the size of a time zone.
	maxZone = 1 << 20
	// zoneMagic begins each file with a time zone (RFC 9636).
	zoneMagic = "TZif"
)

// readTimezone reads a time zone of the host, of which each pod gets a copy.
func (d *Defaults) readTimezone(zone string, warnings *warning.List) (err error) {
	if zone == "" {
		return nil
	}
	source := filepath.Join(zoneDir, zone)
	if strings.EqualFold(zone, config.TimezoneLocal) {
		source = hostLocaltime
		if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
			warnings.Add("pod.timezone", zone, "is ignored: this host has no "+hostLocaltime)
			return nil
		}
	}
	if d.Localtime, err = readZone(source); err != nil {
		return &SettingError{"timezone", fmt.Sprintf("%q: %v", zone, err)}
	}
	d.Timezone = zone
	return nil
}

func readZone(file string) ([]byte, error) {
	f, err := directory.OpenRegular(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist", file)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading only
	data, err := io.ReadAll(io.LimitReader(f, maxZone+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > maxZone:
		return nil, fmt.Errorf("%s is larger than %d bytes", file, maxZone)
	case !bytes.HasPrefix(data, []byte(zoneMagic)):
		return nil, fmt.Errorf("%s holds no time zone", file)
	}
	return data, nil
}
