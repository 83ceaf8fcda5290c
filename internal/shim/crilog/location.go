package crilog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/directory"
)

// callTimeout bounds the wait for the disk of a log directory.
const callTimeout = 2 * time.Second

// Location is where a log is. Containers may control what is below the log directory of their pod: a volume of the host
// can show it to them. So Name is resolved without symbolic links, and only a regular file is a log. Directory may be
// reached by symbolic links, which are the administrator's.
type Location struct {
	// Directory is the log directory of the pod; Name is below it. Both are empty for no log.
	Directory, Name string
}

// At is the location of a log with an absolute path. A directory that the path is not below, as of a record of an earlier
// version, is replaced by that of the path.
func At(dir, path string) Location {
	if path == "" {
		return Location{}
	}
	if name, err := filepath.Rel(dir, path); dir != "" && err == nil && filepath.IsLocal(name) {
		return Location{dir, name}
	}
	return Location{filepath.Dir(path), filepath.Base(path)}
}

// String is the path.
func (l Location) String() string { return filepath.Join(l.Directory, l.Name) }

func (l Location) none() bool { return l.Name == "" }

// MakeParent makes the directory that the log is in, and the log directory of the pod.
func (l Location) MakeParent(ctx context.Context) error {
	return l.within(ctx, func() error {
		if err := os.MkdirAll(l.Directory, 0o755); err != nil {
			return err
		}
		return directory.MakeBeneath(l.Directory, filepath.Dir(l.Name), 0o755)
	})
}

// Exists reports whether there is anything. It does when the disk does not answer.
func (l Location) Exists(ctx context.Context) bool {
	err := l.within(ctx, func() error {
		parent, err := directory.OpenDirBeneath(l.Directory, filepath.Dir(l.Name))
		if err != nil {
			return unix.ENOENT
		}
		defer parent.Close() //nolint:errcheck // opened to find something only
		var st unix.Stat_t
		return unix.Fstatat(int(parent.Fd()), filepath.Base(l.Name), &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return err == nil || errors.Is(err, ErrHangs)
}

// RemoveEmpty removes a log without a line.
func (l Location) RemoveEmpty(ctx context.Context) error {
	return l.within(ctx, func() error {
		file, err := directory.OpenBeneath(l.Directory, l.Name, os.O_RDONLY, 0)
		if err != nil {
			return nil //nolint:nilerr // there is no log
		}
		info, err := file.Stat()
		if err = errors.Join(err, file.Close()); err != nil || info.Size() > 0 {
			return err
		}
		return l.remove()
	})
}

// inUse has the log directories that a call of within waits for.
var inUse = struct {
	sync.Mutex

	done map[string]chan struct{}
}{done: map[string]chan struct{}{}}

// within runs fn, which waits for the disk of the log directory, for callTimeout at most. A call that the
// disk does not answer goes on by itself; others to the directory wait for it, so that there is one.
func (l Location) within(ctx context.Context, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		inUse.Lock()
		busy, isBusy := inUse.done[l.Directory]
		if !isBusy {
			break
		}
		inUse.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return fmt.Errorf("log directory %s: %w", l.Directory, ErrHangs)
		}
	}
	ended, failed := make(chan struct{}), make(chan error, 1)
	inUse.done[l.Directory] = ended
	inUse.Unlock()
	go func() {
		failed <- fn()
		inUse.Lock()
		delete(inUse.done, l.Directory)
		inUse.Unlock()
		close(ended)
	}()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("log directory %s: %w", l.Directory, ErrHangs)
	}
}

func (l Location) remove() error {
	err := directory.RemoveBeneath(l.Directory, l.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// make makes the log, which must not exist.
func (l Location) make() (*os.File, error) {
	return directory.OpenBeneath(l.Directory, l.Name, logFlags|os.O_CREATE|os.O_EXCL, logMode)
}

// open opens the log, which is made if create is set. One that has another name is refused: a container can make a name
// for a file that it may not write to.
func (l Location) open(create bool) (*os.File, error) {
	flags := logFlags
	if create {
		flags |= os.O_CREATE
	}
	file, err := directory.OpenBeneath(l.Directory, l.Name, flags, logMode)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(file.Fd()), &st)
	if err == nil && st.Nlink > 1 {
		err = fmt.Errorf("log %s has %d hard links, want one: %w", l, st.Nlink, unix.EMLINK)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// openLog opens the file with the given inode in the directory of the log, which may have been renamed, or the log itself.
func openLog(at Location, inode uint64) (*os.File, error) {
	if inode != 0 {
		file, err := at.openInode(inode)
		if err != nil {
			return nil, fmt.Errorf("look for log %s: %w", at, err)
		}
		if file != nil {
			return file, nil
		}
	}
	file, err := at.open(true)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return file, nil
}

// openInode opens the file with the inode beside the log; nil if there is none.
func (l Location) openInode(inode uint64) (*os.File, error) {
	parent, err := directory.OpenDirBeneath(l.Directory, filepath.Dir(l.Name))
	if err != nil {
		return nil, err
	}
	defer parent.Close() //nolint:errcheck // opened for reading only
	names, err := parent.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(int(parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Ino != inode {
			continue // removed meanwhile, or another
		}
		file, err := directory.OpenBeneath(l.Directory, filepath.Join(filepath.Dir(l.Name), name), logFlags, logMode)
		if err != nil {
			return nil, err
		}
		if got, err := inodeOf(file); err != nil || got != inode { // replaced meanwhile
			return nil, errors.Join(err, file.Close(), unix.ESTALE)
		}
		return file, nil
	}
	return nil, nil //nolint:nilnil // none
}
