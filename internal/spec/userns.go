package spec

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UserNamespace returns the ID mappings of a pod that has a user namespace of
// its own, and false for any other.
func UserNamespace(pod *runtimeapi.PodSandboxConfig) (uids, gids []specs.LinuxIDMapping, ok bool) {
	options := pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if options == nil || options.GetMode() != modePod {
		return nil, nil, false
	}
	return IDMappings(options.GetUids()), IDMappings(options.GetGids()), true
}

// IDMappings translates the mappings of a request.
func IDMappings(mappings []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var result []specs.LinuxIDMapping
	for _, m := range mappings {
		result = append(result, specs.LinuxIDMapping{
			ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength(),
		})
	}
	return result
}

// validateUserns accepts no user namespace, that of the node, and one mapping
// of a range that begins with ID 0, the same for users and for groups.
func validateUserns(field string, options *runtimeapi.UserNamespace) error {
	if options == nil {
		return nil
	}
	switch options.GetMode() {
	case modeNode:
		if len(options.GetUids()) > 0 || len(options.GetGids()) > 0 {
			return invalid(field+".uids", fmt.Sprint(options.GetUids()), "must be empty in mode NODE, and gids too")
		}
		return nil
	case modePod:
	default:
		return invalid(field+".mode", options.GetMode().String(), "must be POD or NODE")
	}
	for _, list := range []struct {
		name     string
		mappings []*runtimeapi.IDMapping
	}{{"uids", options.GetUids()}, {"gids", options.GetGids()}} {
		if len(list.mappings) != 1 {
			return invalid(field+"."+list.name, fmt.Sprint(list.mappings), "must be exactly one mapping")
		}
		m := list.mappings[0]
		if m.GetContainerId() != 0 || m.GetLength() == 0 {
			return invalid(field+"."+list.name, m.String(), "must map a range that begins with ID 0")
		}
		if uint64(m.GetHostId())+uint64(m.GetLength()) > math.MaxUint32 {
			return invalid(field+"."+list.name, m.String(), "goes beyond the largest ID of the host")
		}
	}
	if !proto.Equal(options.GetUids()[0], options.GetGids()[0]) {
		return invalid(field+".gids", options.GetGids()[0].String(), "must be the same mapping as uids, "+options.GetUids()[0].String())
	}
	return nil
}

// validateOwnUserns checks that a container asks for the user namespace of its
// pod, or for none in particular.
func validateOwnUserns(field string, own *runtimeapi.UserNamespace, pod *runtimeapi.PodSandboxConfig) error {
	if err := validateUserns(field, own); err != nil || own == nil {
		return err
	}
	uids, gids, ok := UserNamespace(pod)
	switch {
	case ok != (own.GetMode() == modePod):
		mode := modeNode
		if ok {
			mode = modePod
		}
		return invalid(field+".mode", own.GetMode().String(), "differs from that of the sandbox, "+mode.String())
	case !slices.Equal(IDMappings(own.GetUids()), uids):
		return invalid(field+".uids", fmt.Sprint(own.GetUids()), "differs from that of the sandbox")
	case !slices.Equal(IDMappings(own.GetGids()), gids):
		return invalid(field+".gids", fmt.Sprint(own.GetGids()), "differs from that of the sandbox")
	}
	return nil
}

// validateMapping checks the mappings of a mount.
func validateMapping(field string, mount *runtimeapi.Mount, pod *runtimeapi.PodSandboxConfig) error {
	uids, gids := IDMappings(mount.GetUidMappings()), IDMappings(mount.GetGidMappings())
	if len(uids) == 0 && len(gids) == 0 {
		return nil
	}
	if len(uids) != 1 || len(gids) != 1 {
		return invalid(field+".uidMappings", fmt.Sprint(mount.GetUidMappings()), "must be one mapping, and one in gidMappings")
	}
	for _, m := range []specs.LinuxIDMapping{uids[0], gids[0]} {
		if m.Size == 0 || uint64(m.HostID)+uint64(m.Size) > math.MaxUint32 || uint64(m.ContainerID)+uint64(m.Size) > math.MaxUint32 {
			return invalid(field+".uidMappings", fmt.Sprint(mount.GetUidMappings(), mount.GetGidMappings()), "is empty or goes beyond the largest ID")
		}
	}
	if mount.GetImage() == nil {
		return nil
	}
	// An image is mounted once for all containers of the pod.
	if podUIDs, podGIDs, _ := UserNamespace(pod); !slices.Equal(uids, podUIDs) || !slices.Equal(gids, podGIDs) {
		return invalid(field+".uidMappings", fmt.Sprint(mount.GetUidMappings()), "of an image must be that of the pod's user namespace")
	}
	return nil
}

// ttyGroup is the group that terminals belong to.
const ttyGroup = 5

// userMounts replaces file systems that a user namespace cannot mount, since
// the namespace which they show is that of the node, by those of the node. And
// it names no group that is not mapped.
func userMounts(in Input, defaults []specs.Mount) []specs.Mount {
	modes := ModesOf(in.Config, in.Pod)
	_, gids, _ := UserNamespace(in.Pod)
	ofNode := map[string]bool{
		"/sys": modes.Network == modeNode, "/dev/mqueue": modes.IPC == modeNode, "/proc": modes.PID == modeNode,
	}
	for i, mount := range slices.Backward(defaults) {
		if mount.Type == "devpts" && gids[0].Size <= ttyGroup {
			defaults[i].Options = slices.DeleteFunc(mount.Options, func(o string) bool { return strings.HasPrefix(o, "gid=") })
		}
		if !ofNode[mount.Destination] {
			continue
		}
		if !exists(mount.Destination) { // then the node has none
			defaults = slices.Delete(defaults, i, i+1)
			continue
		}
		options := append([]string{"rbind", propagationPrivate}, mount.Options...)
		if j := slices.Index(options, "ro"); j >= 0 && in.Host.RecursiveReadOnly {
			options[j] = "rro" // other file systems are mounted below /sys
		}
		defaults[i] = specs.Mount{Type: "bind", Source: mount.Destination, Destination: mount.Destination, Options: options}
	}
	return defaults
}

// lockedFlags are restrictions of a mount that a user namespace must keep.
var lockedFlags = []struct {
	flag         int64
	name, negate string
}{{unix.ST_NOSUID, "nosuid", "suid"}, {unix.ST_NODEV, "nodev", "dev"}, {unix.ST_NOEXEC, "noexec", "exec"}, {unix.ST_RDONLY, "ro", "rw"}}

// keepLocked adds the restrictions of the source to the options of a bind
// mount: the kernel lets no user namespace mount it with fewer.
func keepLocked(mount *specs.Mount) error {
	var st unix.Statfs_t
	err := unix.Statfs(mount.Source, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil // the OCI runtime says so
	}
	if err != nil {
		return fmt.Errorf("inspect the file system of %s: %w", mount.Source, err)
	}
	for _, f := range lockedFlags {
		if st.Flags&f.flag == 0 || slices.Contains(mount.Options, f.name) || f.name == "ro" && slices.Contains(mount.Options, "rro") {
			continue
		}
		mount.Options = slices.DeleteFunc(mount.Options, func(have string) bool { return have == f.negate })
		mount.Options = append(mount.Options, f.name)
	}
	return nil
}
