package namespace

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openQueues opens the file system of the message queues of the calling thread's IPC namespace, which is mounted nowhere.
func openQueues() (*os.File, error) {
	const kind = "mqueue"
	context, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open file system", Path: kind, Err: err}
	}
	defer func() { _ = unix.Close(context) }()
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, &os.PathError{Op: "configure file system", Path: kind, Err: err}
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "mount file system", Path: kind, Err: err}
	}
	return os.NewFile(uintptr(fd), kind), nil
}

// handQueues hands the directory of the message queues of the calling thread's IPC namespace to the pod. The kernel gives it
// to the user that makes the namespace, which is not mapped in a user namespace of the pod: then no user of the pod may change it,
// and runc cannot label it. crun 1.8 leaves its label, which is the daemon's.
func (req Request) handQueues() error {
	queues, err := openQueues()
	if err != nil {
		return fmt.Errorf("hand message queues to the pod: %w", err)
	}
	fd := int(queues.Fd())
	if req.user() {
		err = unix.Fchownat(fd, "", int(req.UIDs[0].HostID), int(req.GIDs[0].HostID), unix.AT_EMPTY_PATH)
	}
	if err == nil && req.Label != "" {
		err = unix.Setxattr(fmt.Sprintf("/proc/thread-self/fd/%d", fd), "security.selinux", []byte(req.Label), 0)
	}
	if err := errors.Join(err, queues.Close()); err != nil {
		return fmt.Errorf("hand message queues to the pod (SELinux label %q): %w", req.Label, err)
	}
	return nil
}
