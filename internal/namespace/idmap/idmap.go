// Package idmap makes mounts whose files show other owners than they have on disk: a user namespace says which.
//
// A mount gets its mapping while nothing sees it yet, and is then attached for good. So a crash leaves either a mount with
// its mapping or none.
package idmap

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Options say how a copy of a mount differs from the original.
type Options struct {
	// Slave lets mounts that come and go below the original do so below the copy. No copy tells the original of anything.
	Slave bool
	// Readonly makes the copy read-only, without devices and setuid programs.
	Readonly bool
}

// Bind mounts source with all that is mounted below it at target, which must exist, with the mapping of a user namespace.
//
// A file system below source that cannot be mapped keeps its owners, which the container sees as the overflow user; whole tells
// whether there is none. When source itself cannot be mapped, the error is [errdefs.ErrFailedPrecondition].
func Bind(source, target string, user *os.File, opts Options) (whole bool, err error) {
	tree, whole, err := clone(source, user, opts)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	return whole, Attach(tree, target)
}

// clone copies a mount and what is below it; nothing but the file sees the copy.
func clone(source string, user *os.File, opts Options) (tree *os.File, whole bool, err error) {
	if tree, err = Copy(source, true); err != nil {
		return nil, false, err
	}
	attr := opts.attr()
	// All at once or, when one does not take it, all but the mapping and then that alone.
	attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
	attr.Userns_fd = uint64(user.Fd())
	err = setattr(tree, unix.AT_RECURSIVE, attr)
	if err == nil {
		return tree, true, nil
	}
	plain := opts.attr()
	err = errors.Join(setattr(tree, unix.AT_RECURSIVE, plain), Map(tree, user))
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("map %s: %w", source, err), tree.Close())
	}
	return tree, false, nil
}

func (o Options) attr() *unix.MountAttr {
	attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if o.Slave {
		attr.Propagation = unix.MS_SLAVE
	}
	if o.Readonly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	}
	return attr
}

// Copy copies a mount, with what is below it if it is to be whole; nothing but the file sees the copy.
func Copy(source string, whole bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if whole {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, flags)
	if err != nil {
		return nil, &os.PathError{Op: "copy mount", Path: source, Err: err}
	}
	return os.NewFile(uintptr(fd), source), nil
}

// Map gives a copy that is not attached yet the mapping of a user namespace.
func Map(tree, user *os.File) error {
	err := setattr(tree, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(user.Fd())})
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%s cannot be idmapped by this kernel: %w: %w", fsName(tree), err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s is idmapped already, or the daemon may not map it: %w: %w", fsName(tree), err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// Attach mounts a copy at target.
func Attach(tree *os.File, target string) error {
	err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return &os.PathError{Op: "attach mount", Path: target, Err: err}
	}
	return nil
}

func setattr(tree *os.File, flags uint, attr *unix.MountAttr) error {
	if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH|flags, attr); err != nil {
		return fmt.Errorf("change mount: %w", err)
	}
	return nil
}

// fsNames are file systems that people meet, by their number in statfs(2).
var fsNames = map[int64]string{
	unix.NFS_SUPER_MAGIC: "NFS", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.FUSE_SUPER_MAGIC: "FUSE",
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.TMPFS_MAGIC: "tmpfs", unix.SMB2_SUPER_MAGIC: "SMB",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2", unix.V9FS_MAGIC: "9p", unix.CEPH_SUPER_MAGIC: "ceph", unix.NSFS_MAGIC: "nsfs",
}

func fsName(tree *os.File) string {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(tree.Fd()), &st); err != nil {
		return "the file system"
	}
	if name, ok := fsNames[st.Type]; ok {
		return "the file system (" + name + ")"
	}
	return fmt.Sprintf("the file system (type %#x)", st.Type)
}
