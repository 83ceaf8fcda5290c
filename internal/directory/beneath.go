package directory

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What is below a directory may be in the hands of a container: it can put a symbolic link, a FIFO or a device where a
// file is expected. The functions here open names below a directory, which itself may be reached by symbolic links, and
// never leave it. What is found is looked at before it is opened: the open of a FIFO may block, that of a device may act.

const (
	// beneath refuses symbolic links altogether.
	beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	// inRoot follows symbolic links as if the directory were the root directory.
	inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	// openAttempts is how often a file is opened that another process renames meanwhile.
	openAttempts = 32
)

// OpenBeneath opens a regular file below a directory, for reading and writing as flags say. With O_CREATE a file that
// does not exist is made, with O_EXCL besides none that exists is opened. Symbolic links are not followed.
func OpenBeneath(dir, name string, flags int, mode uint32) (*os.File, error) {
	root, err := openPath(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root) //nolint:errcheck // an O_PATH descriptor holds no data
	path := filepath.Join(dir, name)
	for range openAttempts {
		if flags&unix.O_CREAT != 0 {
			fd, err := openat2(root, name, flags|unix.O_EXCL|unix.O_NOFOLLOW, mode, beneath)
			if err == nil {
				return os.NewFile(uintptr(fd), path), nil
			}
			if !errors.Is(err, unix.EEXIST) || flags&unix.O_EXCL != 0 {
				return nil, &fs.PathError{Op: "create", Path: path, Err: err}
			}
		}
		file, err := openExisting(root, name, path, flags&^unix.O_CREAT, beneath)
		if flags&unix.O_CREAT == 0 || !errors.Is(err, unix.ENOENT) {
			return file, err
		}
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: unix.EBUSY}
}

// ReadInRoot reads a regular file of at most limit bytes below a directory, as a process reads it that has the directory
// as its root directory. A larger one is an error that wraps EFBIG.
func ReadInRoot(dir, name string, limit int64) ([]byte, error) {
	file, err := OpenInRoot(dir, name)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // opened for reading only
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = &fs.PathError{Op: "read", Path: "/" + name, Err: fmt.Errorf("larger than %d bytes: %w", limit, unix.EFBIG)}
	}
	return data, err
}

// OpenInRoot opens a regular file below a directory for reading, as a process opens it that has the directory as its root
// directory.
func OpenInRoot(dir, name string) (*os.File, error) {
	root, err := openPath(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root) //nolint:errcheck // an O_PATH descriptor holds no data
	return openExisting(root, name, "/"+name, unix.O_RDONLY, inRoot)
}

// OpenRegular opens a regular file for reading. Symbolic links are followed.
func OpenRegular(path string) (*os.File, error) {
	return openExisting(unix.AT_FDCWD, path, path, unix.O_RDONLY, 0)
}

// openExisting opens a regular file that was looked at before.
func openExisting(root int, name, path string, flags int, resolve uint64) (*os.File, error) {
	found, err := openat2(root, name, unix.O_PATH|noFollow(resolve), 0, resolve)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(found) //nolint:errcheck // an O_PATH descriptor holds no data
	var st unix.Stat_t
	if err := unix.Fstat(found, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := regular(st.Mode); err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	fd, err := openPath(fmt.Sprintf("/proc/self/fd/%d", found), flags)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// noFollow is O_NOFOLLOW where symbolic links are refused: the link itself is found then, and named as what it is.
func noFollow(resolve uint64) int {
	if resolve&unix.RESOLVE_NO_SYMLINKS != 0 {
		return unix.O_NOFOLLOW
	}
	return 0
}

// regular is nil for the mode of a regular file.
func regular(mode uint32) error {
	what, err := "device or socket", unix.ENXIO
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFLNK:
		what, err = "symbolic link", unix.ELOOP
	case unix.S_IFDIR:
		what, err = "directory", unix.EISDIR
	case unix.S_IFIFO:
		what = "named pipe"
	}
	return fmt.Errorf("it is a %s, not a regular file: %w", what, err)
}

// OpenDirBeneath opens a directory below a directory, to read what is in it. Symbolic links are not followed.
func OpenDirBeneath(dir, name string) (*os.File, error) {
	root, err := openPath(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root) //nolint:errcheck // an O_PATH descriptor holds no data
	path := filepath.Join(dir, name)
	fd, err := openat2(root, name, unix.O_RDONLY|unix.O_DIRECTORY, 0, beneath)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenDirInRoot opens a directory below a directory to read what is in it, as a process opens it that has the other one as
// its root directory.
func OpenDirInRoot(dir, name string) (*os.File, error) {
	root, err := openPath(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root) //nolint:errcheck // an O_PATH descriptor holds no data
	fd, err := openat2(root, name, unix.O_RDONLY|unix.O_DIRECTORY, 0, inRoot)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// MakeBeneath makes a directory below a directory, with its parents. Symbolic links are not followed.
func MakeBeneath(dir, name string, mode uint32) error {
	at, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { at.Close() }() //nolint:errcheck // an O_PATH descriptor holds no data
	for part := range strings.SplitSeq(filepath.Clean(name), "/") {
		if part == "." {
			continue
		}
		path := filepath.Join(at.Name(), part)
		if err := unix.Mkdirat(int(at.Fd()), part, mode); err != nil && !errors.Is(err, unix.EEXIST) {
			return &fs.PathError{Op: "mkdir", Path: path, Err: err}
		}
		fd, err := openat2(int(at.Fd()), part, unix.O_PATH|unix.O_DIRECTORY, 0, beneath)
		if err != nil {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
		at.Close() //nolint:errcheck // as above
		at = os.NewFile(uintptr(fd), path)
	}
	return nil
}

// RemoveBeneath removes a file below a directory. Symbolic links on the way are not followed.
func RemoveBeneath(dir, name string) error {
	parent, err := OpenDirBeneath(dir, filepath.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close() //nolint:errcheck // opened to find something only
	if err := unix.Unlinkat(int(parent.Fd()), filepath.Base(name), 0); err != nil {
		return &fs.PathError{Op: "remove", Path: filepath.Join(dir, name), Err: err}
	}
	return nil
}

func openat2(dir int, name string, flags int, mode uint32, resolve uint64) (int, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode)
	}
	var fd int
	var err error
	for range openAttempts { // EAGAIN: a directory on the way was renamed meanwhile
		fd, err = unix.Openat2(dir, name, how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return fd, err
}

func openPath(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}
