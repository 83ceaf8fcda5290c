package spec

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/directory"
)

const (
	passwdPath = "/etc/passwd"
	// userHome is the home of a user for whom nothing else is known.
	userHome = "/tmp"
)

// PasswdFile is a file with the users of an image, and one more.
type PasswdFile struct {
	Content []byte
	// Mode is that of the file of the image.
	Mode os.FileMode
	// UID and GID own the file of the image, as the host numbers them.
	UID, GID uint32
}

// passwdFile adds an entry for a user that the image does not know, where that is configured. A file that the user may change is
// left to the container, and one that the request mounts is not ours.
func passwdFile(in Input, process *specs.Process) (*PasswdFile, error) {
	if !in.Defaults.passwdEntry || in.Passwd == "" {
		return nil, nil //nolint:nilnil // the image's own is used
	}
	for _, mount := range in.Config.GetMounts() {
		if target := strings.TrimRight(mount.GetContainerPath(), "/"); target == passwdPath || target == "/etc" {
			return nil, nil //nolint:nilnil // as above
		}
	}
	data, err := readAccountFile(in.Rootfs, passwdPath[1:])
	if err != nil || len(data) == 0 {
		return nil, err
	}
	accounts, err := parseAccounts(data, nil)
	if err != nil {
		return nil, err
	}
	uid, gid := process.User.UID, process.User.GID
	if accounts.byID(uid).name != "" {
		return nil, nil //nolint:nilnil // as above
	}
	info, err := statAccountFile(in.Rootfs, passwdPath[1:])
	if err != nil {
		return nil, err
	}
	if info.Mode&0o022 != 0 || info.Uid == hostID(in, uid) && info.Mode&0o200 != 0 {
		return nil, nil //nolint:nilnil // programs of the image add their entry themselves
	}
	entry := fmt.Sprintf("%d:x:%d:%d:%d user:%s:/sbin/nologin\n", uid, uid, gid, uid, homeOf(process))
	if !strings.HasSuffix(string(data), "\n") {
		entry = "\n" + entry
	}
	in.apply("passwd_entry", strings.TrimSpace(entry))
	return &PasswdFile{Content: slices.Concat(data, []byte(entry)), Mode: os.FileMode(info.Mode & 0o777), UID: info.Uid, GID: info.Gid}, nil
}

// hostID is the number that the host has for a user of the container.
func hostID(in Input, uid uint32) uint32 {
	if uids, _, ok := UserNamespace(in.Pod); ok {
		return uids[0].HostID + uid
	}
	return uid
}

// homeOf returns a home that fits into a line of /etc/passwd.
func homeOf(process *specs.Process) string {
	for _, home := range []string{variable(process.Env, "HOME"), process.Cwd} {
		if home != "" && !strings.ContainsAny(home, ":\n\r\x00") {
			return home
		}
	}
	return userHome
}

func variable(env []string, name string) string {
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

// passwdMount is the mount of the file that the caller writes.
func passwdMount(in Input) specs.Mount {
	return specs.Mount{
		Type: "bind", Source: in.Passwd, Destination: passwdPath,
		Options: append([]string{"rbind", propagationPrivate}, podFileOptions(in)...),
	}
}

func statAccountFile(rootfs, name string) (info unix.Stat_t, err error) {
	f, err := directory.OpenInRoot(rootfs, name)
	if err != nil {
		return info, fmt.Errorf("inspect /%s of the image: %w", name, err)
	}
	defer f.Close() //nolint:errcheck // opened for reading only
	if err = unix.Fstat(int(f.Fd()), &info); err != nil {
		err = fmt.Errorf("inspect /%s of the image: %w", name, err)
	}
	return info, err
}
