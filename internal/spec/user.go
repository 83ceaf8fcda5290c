package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/directory"
)

const (
	// maxAccountFile bounds what is read of an image's passwd and group files.
	maxAccountFile = 8 << 20
	// maxGroups is how many groups the kernel gives a process: NGROUPS_MAX.
	maxGroups = 1 << 16
)

// identity is who a process runs as.
type identity struct {
	uid, gid uint32
	// name is the name of the user in the image, empty if it has none.
	name string
}

// resolveUser finds the identity of the first process: what the request says,
// else what the image says, else root.
func resolveUser(in Input) (specs.User, error) {
	sc := in.Config.GetLinux().GetSecurityContext()
	accounts, err := readAccounts(in.Rootfs)
	if err != nil {
		return specs.User{}, fmt.Errorf("look up the user of container %s: %w", in.ContainerID, err)
	}
	var who identity
	switch {
	case sc.GetRunAsUser() != nil:
		who = accounts.byID(uint32(sc.GetRunAsUser().GetValue()))
	case sc.GetRunAsUsername() != "":
		who, err = accounts.find("linux.security_context.run_as_username", sc.GetRunAsUsername())
	default:
		who, err = accounts.find("user of the image", in.Image.User)
	}
	if err != nil {
		return specs.User{}, err
	}
	if group := sc.GetRunAsGroup(); group != nil {
		who.gid = uint32(group.GetValue())
	}
	groups := []uint32{who.gid}
	if sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge {
		groups = append(groups, accounts.groupsOf(who.name)...)
	}
	for _, group := range sc.GetSupplementalGroups() {
		groups = append(groups, uint32(group))
	}
	slices.Sort(groups)
	if groups = slices.Compact(groups); len(groups) > maxGroups {
		return specs.User{}, invalid("groups of the container", fmt.Sprintf("%d groups", len(groups)),
			fmt.Sprintf("user %q has more than %d by supplemental_groups and /etc/group of the image", who.name, maxGroups))
	}
	result := specs.User{UID: who.uid, GID: who.gid, AdditionalGids: groups}
	return result, checkMapped(result, in.Pod)
}

// checkMapped refuses a user that is not mapped in the user namespace of a pod.
func checkMapped(who specs.User, pod *runtimeapi.PodSandboxConfig) error {
	uids, gids, ok := UserNamespace(pod)
	if !ok {
		return nil
	}
	const reason = "is not in the user namespace of the pod, which has the IDs below %d"
	if size := uids[0].Size; who.UID >= size {
		return invalid("user of the container", who.UID, fmt.Sprintf(reason, size))
	}
	for _, gid := range who.AdditionalGids { // that of the user among them
		if size := gids[0].Size; gid >= size {
			return invalid("group of the container", gid, fmt.Sprintf(reason, size))
		}
	}
	return nil
}

// containerUser is an identity as ContainerStatus reports it.
func containerUser(u specs.User) *runtimeapi.ContainerUser {
	result := &runtimeapi.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, group := range u.AdditionalGids {
		result.SupplementalGroups = append(result.SupplementalGroups, int64(group))
	}
	return &runtimeapi.ContainerUser{Linux: result}
}

// accounts are the users and groups of an image.
type accounts struct {
	users  []user.User
	groups []user.Group
}

// readAccounts reads the passwd and group files below a root file system. An
// image without them has no named users.
func readAccounts(rootfs string) (*accounts, error) {
	passwd, err := readAccountFile(rootfs, "etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := readAccountFile(rootfs, "etc/group")
	if err != nil {
		return nil, err
	}
	return parseAccounts(passwd, group)
}

func parseAccounts(passwd, group []byte) (result *accounts, err error) {
	result = &accounts{}
	if result.users, err = user.ParsePasswd(bytes.NewReader(passwd)); err != nil {
		return nil, fmt.Errorf("read /etc/passwd of the image: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if result.groups, err = user.ParseGroup(bytes.NewReader(group)); err != nil {
		return nil, fmt.Errorf("read /etc/group of the image: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return result, nil
}

// readAccountFile reads a regular file of an image, nil if there is none. No symbolic
// link leads out of the image, and nothing but a regular file is opened: a device of
// the image would be one of the host.
func readAccountFile(rootfs, name string) ([]byte, error) {
	data, err := directory.ReadInRoot(rootfs, name, maxAccountFile)
	var reason *fs.PathError
	switch {
	case err == nil:
		return data, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case errors.As(err, &reason) && (errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EFBIG)):
		return nil, fmt.Errorf("/%s of the image: %w: %w", name, reason.Err, errdefs.ErrInvalidArgument)
	}
	return nil, fmt.Errorf("read /%s of the image: %w", name, err)
}

// byID returns the user with the ID. Its group is that of passwd, or 0 if the
// ID is not there.
func (a *accounts) byID(uid uint32) identity {
	for _, entry := range a.users {
		if entry.Uid == int(uid) && validID(entry.Gid) {
			return identity{uid: uid, gid: uint32(entry.Gid), name: entry.Name}
		}
	}
	return identity{uid: uid}
}

// byName returns the user with the name.
func (a *accounts) byName(name string) (identity, bool) {
	for _, entry := range a.users {
		if entry.Name == name && validID(entry.Uid) && validID(entry.Gid) {
			return identity{uid: uint32(entry.Uid), gid: uint32(entry.Gid), name: name}, true
		}
	}
	return identity{}, false
}

// find resolves the user of a field: "", "user" or "user:group", each a name or a number.
func (a *accounts) find(field, text string) (identity, error) {
	name, group, hasGroup := strings.Cut(text, ":")
	who := a.byID(0)
	if name != "" {
		entry, ok := a.byName(name)
		if !ok {
			uid, err := parseID(name)
			if err != nil {
				return identity{}, invalid(field, text, "is neither a number nor in /etc/passwd of the image")
			}
			entry = a.byID(uid)
		}
		who = entry
	}
	if !hasGroup || group == "" {
		return who, nil
	}
	for _, entry := range a.groups {
		if entry.Name == group && validID(entry.Gid) {
			who.gid = uint32(entry.Gid)
			return who, nil
		}
	}
	gid, err := parseID(group)
	if err != nil {
		return identity{}, invalid(field, text, "has a group that is neither a number nor in /etc/group of the image")
	}
	who.gid = gid
	return who, nil
}

// groupsOf returns the groups that list the user as a member.
func (a *accounts) groupsOf(name string) []uint32 {
	if name == "" {
		return nil
	}
	var result []uint32
	for _, entry := range a.groups {
		if validID(entry.Gid) && slices.Contains(entry.List, name) {
			result = append(result, uint32(entry.Gid))
		}
	}
	return result
}

func validID(id int) bool { return id >= 0 && id <= maxID }

// parseID reads a decimal user or group ID.
func parseID(text string) (uint32, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, err
	}
	if id > maxID {
		return 0, strconv.ErrRange
	}
	return uint32(id), nil
}
