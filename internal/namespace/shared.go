package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// NetDir is where ip netns and plugins of networks look for network namespaces.
const NetDir = "/run/netns"

// pluginNetDir is NetDir as containerd and CRI-O name it to plugins. DaemonSets of networks mount the host's directory under
// this name and open the path that a plugin got below their mount: Istio's ambient agent opens /host + path.
const pluginNetDir = "/var/run/netns"

// PluginPath is the path of a pinned network namespace for plugins of networks. A namespace in [NetDir] is named by
// /var/run/netns if that is the same directory; else the path is returned as it is.
func PluginPath(path string) string {
	if filepath.Dir(path) != NetDir {
		return path
	}
	alias := filepath.Join(pluginNetDir, filepath.Base(path))
	pinned, err := os.Stat(path)
	if err != nil {
		return path
	}
	if found, err := os.Stat(alias); err != nil || !os.SameFile(pinned, found) {
		return path
	}
	return alias
}

// PrepareNetDir makes a directory for the pins of network namespaces. [NetDir] becomes a shared mount as ip netns makes it,
// so that containers that mount it see namespaces come and go.
func PrepareNetDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the directory of network namespaces: %w", err)
	}
	if filepath.Clean(dir) != NetDir {
		return nil
	}
	err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		err = unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, "")
		if err == nil {
			err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	return nil
}

// PinNet pins a network namespace that is pinned at source at target too. An earlier pin at target is replaced.
func PinNet(source, target string) error {
	err := unpin(target)
	if err == nil {
		err = makeMountPoint(target)
	}
	if err == nil {
		if err = bind(source, target); err != nil {
			err = errors.Join(err, unpin(target))
		}
	}
	if err != nil {
		return fmt.Errorf("pin network namespace at %s: %w", target, err)
	}
	return nil
}

// UnpinNet undoes [PinNet]. Nothing at target is no error.
func UnpinNet(target string) error {
	if err := unpin(target); err != nil {
		return fmt.Errorf("remove network namespace at %s: %w", target, err)
	}
	return nil
}
