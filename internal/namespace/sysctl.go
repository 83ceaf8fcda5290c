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

// Owner is the kind of namespace that a sysctl belongs to.
type Owner string

// The owners of sysctls.
const (
	OwnerNet Owner = "network"
	OwnerIPC Owner = "IPC"
	OwnerUTS Owner = "UTS"
)

// SysctlOwner returns the kind of namespace that a sysctl belongs to. It refuses what would change the whole node, or nothing.
func SysctlOwner(name string) (Owner, error) {
	refuse := func(reason string) (Owner, error) {
		return "", fmt.Errorf("sysctl %q: %s: %w", name, reason, errdefs.ErrInvalidArgument)
	}
	parts := sysctlParts(name)
	for _, part := range parts {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/\x00") {
			return refuse("malformed name")
		}
	}
	switch dotted := strings.Join(parts, "."); {
	case len(parts) > 1 && parts[0] == "net":
		return OwnerNet, nil
	case slices.Contains(ipcSysctls, dotted), len(parts) > 2 && parts[0] == "fs" && parts[1] == "mqueue":
		return OwnerIPC, nil
	case dotted == "kernel.domainname":
		return OwnerUTS, nil
	case dotted == "kernel.hostname":
		return refuse("the host name is set by the hostname of the pod")
	}
	return refuse("not separate for each pod; it would change the whole node")
}

// SysctlPath returns the file of a sysctl, by which its different spellings are the same.
func SysctlPath(name string) string {
	return filepath.Join(append([]string{sysctlRoot}, sysctlParts(name)...)...)
}

// OfLink tells whether a sysctl belongs to a network device, which a pod has only once it is connected.
func OfLink(name string) bool { return linkOf(name) != "" }

// checkSysctl refuses what no namespace of the request owns.
func (req Request) checkSysctl(name string) error {
	owner, err := SysctlOwner(name)
	if err != nil {
		return err
	}
	if has := map[Owner]bool{OwnerNet: req.Net, OwnerIPC: req.IPC, OwnerUTS: req.UTS}; !has[owner] {
		return fmt.Errorf("sysctl %q: the pod uses the %s namespace of the host: %w", name, owner, errdefs.ErrInvalidArgument)
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

// writeSysctl sets a value in the namespaces of the calling thread.
func writeSysctl(name, value string) error {
	f, err := os.OpenFile(SysctlPath(name), os.O_WRONLY, 0) // not WriteFile: it would try to create an unknown one
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
