package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const sysctlRoot = "/proc/sys"

// ipcSysctls are the System V settings that belong to an IPC namespace (ipc/ipc_sysctl.c); those of POSIX message queues
// all begin with fs.mqueue.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.msg_next_id", "kernel.auto_msgmni",
	"kernel.sem", "kernel.sem_next_id",
	"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_next_id", "kernel.shm_rmid_forced",
}

// ApplyLinkSysctls sets those of the sysctls that belong to a network device (net.ipv4.conf.DEVICE.*, net.ipv6.conf and the
// neigh trees) in the network namespace at path. It is called when the pod's devices exist.
func ApplyLinkSysctls(path string, sysctls map[string]string) error {
	ofLinks := make(map[string]string)
	for name, value := range sysctls {
		if linkOf(name) != "" {
			ofLinks[name] = value
		}
	}
	if len(ofLinks) == 0 {
		return nil
	}
	return Do(path, func() error {
		for name, value := range ofLinks {
			if err := writeSysctl(name, value); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkSysctl refuses what would change the whole node, or nothing.
func (req Request) checkSysctl(name string) error {
	refuse := func(reason string) error {
		return fmt.Errorf("sysctl %q: %s: %w", name, reason, errdefs.ErrInvalidArgument)
	}
	parts := sysctlParts(name)
	for _, part := range parts {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/\x00") {
			return refuse("malformed name")
		}
	}
	switch dotted := strings.Join(parts, "."); {
	case len(parts) > 1 && parts[0] == "net":
		if !req.Net {
			return refuse("the pod uses the network namespace of the host")
		}
	case slices.Contains(ipcSysctls, dotted), len(parts) > 2 && parts[0] == "fs" && parts[1] == "mqueue":
		if !req.IPC {
			return refuse("the pod uses the IPC namespace of the host")
		}
	case dotted == "kernel.domainname":
		if !req.UTS {
			return refuse("the pod uses the UTS namespace of the host")
		}
	case dotted == "kernel.hostname":
		return refuse("the host name is set by the hostname of the pod")
	default:
		return refuse("not separate for each pod; it would change the whole node")
	}
	return nil
}

// sysctlParts splits a name as sysctl(8) does: whichever of '.' and '/' comes first separates, and the other one stands for
// itself, swapped ("net.ipv4.conf.eth0/100.forwarding" is about the device eth0.100).
func sysctlParts(name string) []string {
	first := strings.IndexAny(name, "./")
	if first < 0 {
		return []string{name}
	}
	if name[first] == '/' {
		return strings.Split(name, "/")
	}
	parts := strings.Split(name, ".")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], "/", ".")
	}
	return parts
}

// linkOf returns the device that a setting belongs to, or nothing.
func linkOf(name string) string {
	parts := sysctlParts(name)
	if len(parts) < 5 || parts[0] != "net" || (parts[1] != "ipv4" && parts[1] != "ipv6") || (parts[2] != "conf" && parts[2] != "neigh") {
		return ""
	}
	if parts[3] == "all" || parts[3] == "default" || parts[3] == "lo" {
		return ""
	}
	return parts[3]
}

func sysctlPath(name string) string {
	return filepath.Join(append([]string{sysctlRoot}, sysctlParts(name)...)...)
}

// writeSysctl sets a value in the namespaces of the calling thread.
func writeSysctl(name, value string) error {
	f, err := os.OpenFile(sysctlPath(name), os.O_WRONLY, 0) // not WriteFile: it would try to create an unknown one
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("sysctl %q: unknown to this kernel: %w", name, errdefs.ErrInvalidArgument)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("sysctl %q: cannot be set for one pod: %w: %w", name, err, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return fmt.Errorf("sysctl %q: value %q refused by the kernel: %w", name, value, errdefs.ErrInvalidArgument)
	default:
		return fmt.Errorf("sysctl %q: set to %q: %w", name, value, errors.Join(errdefs.ErrInvalidArgument, err))
	}
}
