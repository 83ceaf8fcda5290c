package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime/probecontainer"
)

const (
	// trialsPrefix begins the names of the directories, in that for temporary files, in which checks try handlers.
	trialsPrefix = "berth-check-"
	// overlayPrefix begins those, where images are kept, in which they mount overlays.
	overlayPrefix = ".berth-check-"
	// lockAttempts is how many directories are made before one can be locked.
	lockAttempts = 10
)

// scratch is a directory in which a check tries something. It is locked while the check lives.
type scratch struct {
	path string
	lock *os.File
}

// newScratch makes a directory. The caller removes it.
func newScratch(parent, prefix string) (*scratch, error) {
	for range lockAttempts {
		path, err := os.MkdirTemp(parent, prefix)
		if err != nil {
			return nil, err
		}
		d, err := lockScratch(path)
		if d != nil {
			return d, nil
		}
		if err := errors.Join(err, os.RemoveAll(path)); err != nil {
			return nil, err
		}
		// Another check took it for a dead one's before it could be locked.
	}
	return nil, fmt.Errorf("no scratch directory available in %s: %w", parent, unix.EBUSY)
}

// lockScratch takes a directory that no living check has. Nil without an error means that one has it, or that it is
// gone, or that it cannot be a check's: anybody may make directories where temporary files are.
func lockScratch(path string) (*scratch, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil //nolint:nilnil // reported above
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	d := &scratch{path: path, lock: os.NewFile(uintptr(fd), path)}
	ours, err := d.claim(fd)
	if err != nil || !ours {
		return nil, errors.Join(err, d.lock.Close())
	}
	return d, nil
}

// claim locks the directory, which must be this user's alone, and still be there then.
func (d *scratch) claim(fd int) (bool, error) {
	var st, now unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", d.path, err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return false, nil
	}
	err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", d.path, err)
	}
	err = unix.Lstat(d.path, &now)
	return err == nil && now.Ino == st.Ino && now.Dev == st.Dev, nil
}

// remove removes the directory with what is in it.
func (d *scratch) remove() error { return errors.Join(os.RemoveAll(d.path), d.lock.Close()) }

// removeEmpty removes the directory if it is empty. Files that a probe has left are for the next check.
func (d *scratch) removeEmpty() error {
	err := os.Remove(d.path)
	if errors.Is(err, unix.ENOTEMPTY) {
		err = nil
	}
	return errors.Join(err, d.lock.Close())
}

// sweep removes what checks that were killed have left in parent.
func sweep(parent, prefix string, remove func(*scratch) error) error {
	left, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return fmt.Errorf("find leftovers of earlier checks: %w", err)
	}
	var errs []error
	for _, path := range left {
		d, err := lockScratch(path)
		if d != nil {
			err = remove(d)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweepTrials removes what the handler probes of killed checks have left on the host.
func sweepTrials(ctx context.Context) error {
	return sweep(os.TempDir(), trialsPrefix, func(d *scratch) error {
		return errors.Join(probecontainer.Sweep(ctx, d.path), d.removeEmpty())
	})
}
