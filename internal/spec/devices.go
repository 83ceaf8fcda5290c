package spec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	allAccess = "rwm"

	// maxDevices and maxEntries bound the devices below one directory, and what is looked at to find them.
	maxDevices = 1 << 14
	maxEntries = 1 << 16

	// hostDevices is where those are that a privileged container gets.
	hostDevices = "/dev"
)

// elsewhere is what a privileged container has its own of, or what is none of its business.
var elsewhere = []string{"console", "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"}

// deviceSet collects the device nodes of a container and who may use them.
type deviceSet struct {
	nodes []specs.LinuxDevice
	rules []specs.LinuxDeviceCgroup
	// sources are the paths of the nodes on the host, by path in the container.
	sources map[string]string
	// at is the index of a node, by path in the container.
	at map[string]int
}

// devices lists the device nodes of a container beyond those that every OCI
// runtime makes, and the rules of its device cgroup, the last match of which
// counts.
func devices(ctx context.Context, in Input) (*deviceSet, error) {
	set := &deviceSet{sources: map[string]string{}, at: map[string]int{}}
	privileged := in.Config.GetLinux().GetSecurityContext().GetPrivileged()
	everything := privileged && (!in.NoHostDevices || in.AllDevices)
	set.rules = defaultRules()
	if everything {
		set.rules = []specs.LinuxDeviceCgroup{{Allow: true, Access: allAccess}}
	}
	if privileged && !in.NoHostDevices {
		nodes, err := walkDevices(ctx, "linux.security_context.privileged", hostDevices, hostDevices, elsewhere)
		if err != nil {
			return nil, err
		}
		for _, node := range nodes {
			set.put(node)
		}
	}
	owner := deviceOwner(in)
	for i, device := range in.Config.GetDevices() {
		if err := goesOn(ctx, fmt.Sprintf("devices[%d]", i)); err != nil {
			return nil, err
		}
		access := device.GetPermissions()
		if access == "" {
			access = allAccess
		}
		found, err := findDevices(ctx, fmt.Sprintf("devices[%d].host_path", i), device.GetHostPath(), device.GetContainerPath())
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			in.warnings.Add(fmt.Sprintf("devices[%d].host_path", i), device.GetHostPath(), "is a directory without device nodes")
		}
		for _, node := range found {
			owner.give(&node)
			set.put(node)
			if !everything {
				major, minor := node.Major, node.Minor
				set.rules = append(set.rules, specs.LinuxDeviceCgroup{
					Allow: true, Type: node.Type, Major: &major, Minor: &minor, Access: access,
				})
			}
		}
	}
	return set, nil
}

// owner is who devices belong to; nil leaves what they have on the host.
type owner struct{ uid, gid *uint32 }

// deviceOwner is who the devices of the request belong to: the user and the group that it names, as long as they are not root.
func deviceOwner(in Input) (o owner) {
	if !in.Defaults.deviceOwner || len(in.Config.GetDevices()) == 0 {
		return o
	}
	sc := in.Config.GetLinux().GetSecurityContext()
	if uid := uint32(sc.GetRunAsUser().GetValue()); uid > 0 {
		o.uid = &uid
	}
	if gid := uint32(sc.GetRunAsGroup().GetValue()); gid > 0 {
		o.gid = &gid
	}
	if o != (owner{}) {
		in.apply("device_owner", "true")
	}
	return o
}

func (o owner) give(node *hostNode) {
	if o.uid != nil {
		node.UID = o.uid
	}
	if o.gid != nil {
		node.GID = o.gid
	}
}

// put adds a node, in place of one of the same path.
func (s *deviceSet) put(node hostNode) {
	s.sources[node.Path] = node.source
	if i, ok := s.at[node.Path]; ok {
		s.nodes[i] = node.LinuxDevice
		return
	}
	s.at[node.Path] = len(s.nodes)
	s.nodes = append(s.nodes, node.LinuxDevice)
}

// bindRenamed takes those nodes from the set that have another path in the
// container than on the host, and returns mounts in their place. In a user
// namespace, where no process can make nodes, OCI runtimes bind those of the host,
// by the path that they have in the container.
func (s *deviceSet) bindRenamed(ctx context.Context) ([]specs.Mount, error) {
	var binds []specs.Mount
	for _, node := range s.nodes {
		if source := s.sources[node.Path]; source != node.Path {
			binds = append(binds, specs.Mount{
				Type: "bind", Source: source, Destination: node.Path, Options: []string{"bind", propagationPrivate, "rw"},
			})
		}
	}
	for i := range binds {
		if err := goesOn(ctx, "bind "+binds[i].Destination); err != nil {
			return nil, err
		}
		if err := keepLocked(&binds[i]); err != nil {
			return nil, err
		}
	}
	s.nodes = slices.DeleteFunc(s.nodes, func(node specs.LinuxDevice) bool { return s.sources[node.Path] != node.Path })
	return binds, nil
}

// hostNode is a device node with its path in the container, and the one that it
// has on the host.
type hostNode struct {
	specs.LinuxDevice
	source string
}

// findDevices returns the device that a path of the host leads to, or all
// devices below it if it is a directory, with their paths in the container.
func findDevices(ctx context.Context, field, hostPath, containerPath string) ([]hostNode, error) {
	target, err := filepath.EvalSymlinks(hostPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, invalid(field, hostPath, "does not exist")
	}
	if err != nil {
		return nil, invalid(field, hostPath, err.Error())
	}
	info, err := os.Stat(target)
	if err != nil {
		return nil, invalid(field, hostPath, err.Error())
	}
	containerPath = filepath.Clean(containerPath)
	if !info.IsDir() {
		node, err := oci.DeviceFromPath(target)
		if err != nil || node.Type == "p" {
			return nil, invalid(field, hostPath, "is not a device node")
		}
		node.Path = containerPath
		return []hostNode{{*node, target}}, nil
	}
	return walkDevices(ctx, field, target, containerPath, nil)
}

// walkDevices returns the devices below a directory but for those with the names to leave out.
func walkDevices(ctx context.Context, field, dir, containerPath string, leaveOut []string) ([]hostNode, error) {
	var nodes []hostNode
	entries := 0
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			// Devices come and go while we walk.
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if entries++; entries > maxEntries {
			return invalid(field, dir, fmt.Sprintf("holds more than %d files", maxEntries))
		}
		if err == nil && slices.Contains(leaveOut, entry.Name()) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if err != nil || entry.Type()&fs.ModeDevice == 0 {
			return err
		}
		node, err := oci.DeviceFromPath(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, oci.ErrNotADevice) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(nodes) == maxDevices {
			return invalid(field, dir, fmt.Sprintf("holds more than %d devices", maxDevices))
		}
		relative, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		node.Path = filepath.Join(containerPath, relative)
		nodes = append(nodes, hostNode{*node, file})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the devices below %s: %w", dir, err)
	}
	return nodes, nil
}

// defaultRules deny everything but making nodes and using the harmless
// devices that every container has.
func defaultRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: allAccess},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	for _, device := range [][2]int64{
		{1, 3} /* null */, {1, 5} /* zero */, {1, 7} /* full */, {1, 8} /* random */, {1, 9}, /* urandom */
		{5, 0} /* tty */, {5, 1} /* console */, {5, 2}, /* ptmx */
	} {
		major, minor := device[0], device[1]
		rules = append(rules, specs.LinuxDeviceCgroup{
			Allow: true, Type: "c", Major: &major, Minor: &minor, Access: allAccess,
		})
	}
	// Every terminal below /dev/pts.
	major := int64(136)
	return append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Access: allAccess})
}
