package spec

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	devDir = "/dev"
	shmDir = "/dev/shm"

	propagationPrivate = "rprivate"
	propagationSlave   = "rslave"
	propagationShared  = "rshared"
)

// mountOptions are the options that a request may add to a bind mount, each
// with the one that it replaces.
var mountOptions = map[string]string{
	"ro": "rw", "rw": "ro",
	"noexec": "exec", "exec": "noexec",
	"nosuid": "suid", "suid": "nosuid",
	"nodev": "dev", "dev": "nodev",
	"noatime": "atime", "atime": "noatime",
	"nodiratime": "diratime", "diratime": "nodiratime",
	"relatime": "norelatime", "norelatime": "relatime",
	"strictatime": "nostrictatime", "nostrictatime": "strictatime",
}

// mountSet collects the mounts of a container.
type mountSet struct {
	mounts []specs.Mount
	// propagation is that of the root mount: it must let through what the
	// mounts below it receive or send.
	propagation string
	// table is the mount table of this process by ID, read when it is first needed.
	table map[uint64]*mountinfo.Info
}

// mounts lists the default mounts that the request does not replace, and then
// the mounts of the request and the files of the pod, parents first.
func mounts(ctx context.Context, in Input, passwd bool) (*mountSet, error) {
	set := &mountSet{}
	for i, mount := range in.Config.GetMounts() {
		if err := goesOn(ctx, fmt.Sprintf("mounts[%d]", i)); err != nil {
			return nil, err
		}
		if err := set.add(i, mount, in); err != nil {
			return nil, err
		}
	}
	taken := map[string]bool{}
	for _, mount := range set.mounts {
		taken[mount.Destination] = true
	}
	ours := append(podMounts(in), timezoneMount(in, taken)...)
	if passwd {
		ours = append(ours, passwdMount(in))
	}
	for _, mount := range ours {
		if !taken[mount.Destination] {
			set.mounts = append(set.mounts, mount)
		}
	}
	if err := set.addVolumes(in); err != nil {
		return nil, err
	}
	slices.SortStableFunc(set.mounts, func(a, b specs.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
	var defaults []specs.Mount
	for _, mount := range defaultMounts(in) {
		// Who mounts a /dev brings what is in it.
		if taken[mount.Destination] || taken[devDir] && strings.HasPrefix(mount.Destination, devDir+"/") {
			continue
		}
		defaults = append(defaults, mount)
	}
	_, _, mapped := UserNamespace(in.Pod)
	if mapped {
		defaults = userMounts(in, defaults)
	}
	set.mounts = append(defaults, set.mounts...)
	for i := range set.mounts {
		if mapped && set.mounts[i].Type == "bind" {
			if err := errors.Join(goesOn(ctx, "mount "+set.mounts[i].Destination), keepLocked(&set.mounts[i])); err != nil {
				return nil, err
			}
		}
	}
	return set, nil
}

// has tells whether something is bound to target; default mounts are file
// systems and do not count.
func (s *mountSet) has(target string) bool {
	return slices.ContainsFunc(s.mounts, func(mount specs.Mount) bool {
		return mount.Destination == target && mount.Type == "bind"
	})
}

// defaultMounts are the file systems of the kernel that every container has.
func defaultMounts(in Input) []specs.Mount {
	access := "ro"
	privileged := in.Config.GetLinux().GetSecurityContext().GetPrivileged()
	if privileged {
		access = "rw"
	}
	cgroups := []string{"nosuid", "noexec", "nodev", "relatime", access}
	switch {
	case !ownCgroupNamespace(in):
		// There is one file system for the whole host, which takes the options of the last mount.
		cgroups = append(cgroups, in.Host.CgroupOptions...)
	case in.CgroupWritable:
		cgroups[len(cgroups)-1] = "rw"
	}
	mount := func(kind, target string, options ...string) specs.Mount {
		return specs.Mount{Type: kind, Source: kind, Destination: target, Options: options}
	}
	return []specs.Mount{
		mount("proc", "/proc", "nosuid", "noexec", "nodev"),
		mount("tmpfs", devDir, "nosuid", "strictatime", "mode=755", "size=65536k"),
		mount("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
		mount("mqueue", "/dev/mqueue", "nosuid", "noexec", "nodev"),
		mount("sysfs", "/sys", "nosuid", "noexec", "nodev", access),
		mount("cgroup", "/sys/fs/cgroup", cgroups...),
	}
}

// podMounts are what all containers of a pod share.
func podMounts(in Input) []specs.Mount {
	shm := in.Shm
	if ModesOf(in.Config, in.Pod).IPC == modeNode {
		shm = shmDir
	}
	files := podFileOptions(in)
	var list []specs.Mount
	bind := func(source, target string, options ...string) {
		if source != "" {
			list = append(list, specs.Mount{
				Type: "bind", Source: source, Destination: target,
				Options: append([]string{"rbind", propagationPrivate}, options...),
			})
		}
	}
	bind(shm, shmDir, "nosuid", "noexec", "nodev", "rw")
	bind(in.Hosts, "/etc/hosts", files...)
	bind(in.Hostname, "/etc/hostname", files...)
	bind(in.ResolvConf, "/etc/resolv.conf", files...)
	return list
}

// podFileOptions are those of files that Berth makes for containers: as writable as the root file system, and no way to bring
// a program to the host.
func podFileOptions(in Input) []string {
	access := "rw"
	if in.Config.GetLinux().GetSecurityContext().GetReadonlyRootfs() {
		access = "ro"
	}
	return []string{"nosuid", "noexec", "nodev", access}
}

// timezoneMount is the default time zone, unless the request mounts something there.
func timezoneMount(in Input, taken map[string]bool) []specs.Mount {
	if in.Localtime == "" || taken["/etc"] || taken[hostLocaltime] {
		return nil
	}
	in.apply("timezone", in.Timezone)
	return []specs.Mount{{
		Type: "bind", Source: in.Localtime, Destination: hostLocaltime,
		Options: []string{"rbind", propagationPrivate, "nosuid", "noexec", "nodev", "ro"},
	}}
}

// add resolves one mount of the request.
func (s *mountSet) add(index int, mount *runtimeapi.Mount, in Input) error {
	field := fmt.Sprintf("mounts[%d]", index)
	source, err := MountSource(index, mount, in.ImageVolumes)
	if err != nil {
		return err
	}
	_, _, mapped := UserNamespace(in.Pod)
	propagation, err := s.propagate(field, mount, source, in)
	if err != nil {
		return err
	}
	options := []string{"rbind", propagation}
	switch {
	case mount.GetRecursiveReadOnly():
		if !in.Host.RecursiveReadOnly {
			return unavailable(field+".recursive_read_only", true,
				"the kernel or the OCI runtime does not support recursive read-only mounts")
		}
		options = append(options, "rro")
	case mount.GetReadonly():
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	if mount.GetImage() != nil { // as it is mounted on the host; a user namespace cannot lift that
		options = append(options, "nosuid", "nodev")
	}
	for _, option := range mount.GetMountOptions() {
		if mapped && strings.HasSuffix(option, "atime") {
			in.warnings.Add(field+".mount_options", option,
				"is ignored: a user namespace cannot change when a mount records the time of access")
			continue
		}
		options = slices.DeleteFunc(options, func(have string) bool {
			return have == option || have == mountOptions[option]
		})
		options = append(options, option)
	}
	if len(mount.GetUidMappings()) > 0 && mount.GetImage() == nil {
		var ok bool
		if source, ok = in.Mapped[index]; !ok {
			return unavailable(field+".uidMappings", fmt.Sprint(mount.GetUidMappings()), "it is not mounted with its mapping on this node")
		}
	}
	s.mounts = append(s.mounts, specs.Mount{
		Type: "bind", Source: source, Destination: path.Clean(mount.GetContainerPath()), Options: options,
	})
	return nil
}

// MountSource returns the real path of what is to be mounted by the mount of
// that index; volumes are as in Input.ImageVolumes.
func MountSource(index int, mount *runtimeapi.Mount, volumes map[string]string) (string, error) {
	field := fmt.Sprintf("mounts[%d]", index)
	if mount.GetImage() != nil {
		source, ok := volumes[mount.GetContainerPath()]
		if !ok {
			return "", unavailable(field+".image", mount.GetImage().GetImage(), "the image is not mounted on this node")
		}
		return source, nil
	}
	source, err := filepath.EvalSymlinks(mount.GetHostPath())
	if errors.Is(err, fs.ErrNotExist) {
		return "", invalid(field+".host_path", mount.GetHostPath(), "does not exist")
	}
	if err != nil {
		return "", invalid(field+".host_path", mount.GetHostPath(), err.Error())
	}
	return source, nil
}

// propagate chooses the propagation of a mount and checks that its source can
// take part in it: mounts travel only between mounts of one peer group.
func (s *mountSet) propagate(field string, mount *runtimeapi.Mount, source string, in Input) (string, error) {
	var wanted string
	var groups []string
	switch mount.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return propagationPrivate, nil
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		wanted, groups = propagationShared, []string{"shared:"}
		s.propagation = propagationShared
		if _, _, mapped := UserNamespace(in.Pod); mapped {
			in.warnings.Add(field+".propagation", mount.GetPropagation().String(),
				"the host does not see mounts of the container: the kernel lets none leave a user namespace")
			wanted, s.propagation = propagationSlave, propagationSlave
		}
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if mount.GetImage() != nil {
			return propagationPrivate, nil // nothing is mounted in an image
		}
		wanted, groups = propagationSlave, []string{"shared:", "master:"}
		if s.propagation == "" {
			s.propagation = propagationSlave
		}
	default:
		in.warnings.Add(field+".propagation", int32(mount.GetPropagation()), "is unknown; the mount is private")
		return propagationPrivate, nil
	}
	info, err := s.mountOf(source)
	if err != nil {
		return "", fmt.Errorf("%s.host_path %q: find its mount: %w", field, source, err)
	}
	for option := range strings.FieldsSeq(info.Optional) {
		for _, group := range groups {
			if strings.HasPrefix(option, group) {
				return wanted, nil
			}
		}
	}
	return "", unavailable(field+".propagation", mount.GetPropagation().String(), fmt.Sprintf(
		"%s is on the mount %s, which is private; make it shared: mount --make-rshared %s",
		source, info.Mountpoint, info.Mountpoint))
}

// mountOf returns the mount that a path is on. The kernel names it, which is
// right also where mounts hide each other (statx, Linux 5.8).
func (s *mountSet) mountOf(file string) (*mountinfo.Info, error) {
	var stat unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, file, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &stat)
	if err != nil {
		return nil, &fs.PathError{Op: "statx", Path: file, Err: err}
	}
	if s.table == nil {
		infos, err := mountinfo.GetMounts(nil)
		if err != nil {
			return nil, err
		}
		s.table = make(map[uint64]*mountinfo.Info, len(infos))
		for _, info := range infos {
			s.table[uint64(info.ID)] = info
		}
	}
	if info := s.table[stat.Mnt_id]; info != nil {
		return info, nil
	}
	return nil, &fs.PathError{Op: "find mount of", Path: file, Err: fs.ErrNotExist}
}
