package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/directory"
)

// A volume that an image declares (VOLUME) is a directory of the container beside its writable layer, at
//
//	rootfs/<key>/volumes/<number>
//
// It begins as a copy of the directory that the image has there, or empty. It counts as what the container wrote and goes
// with the writable layer.

// PrepareVolumeDirs makes the directories of volumes that an image declares, each named by its path in the root file
// system, which must be mounted at root while no process of the container runs. It may be repeated: what is there stays.
// A directory that the image does not have belongs to root of the mapping, with mode 0755. All copies together are
// limited as the layers of an image are. The error is ErrInvalidArgument if the image has something else than a directory
// there.
func (s *Store) PrepareVolumeDirs(ctx context.Context, key, root string, volumes []string, m *Mapping) (dirs []string, err error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if _, err := s.uses.find(key); err != nil {
		return nil, fmt.Errorf("make volumes of %s: %w", key, err)
	}
	parent := s.rootfsPath(key, volumesDir)
	if err := os.MkdirAll(parent, dirMode); err != nil {
		return nil, fmt.Errorf("make volumes of %s: %w", key, err)
	}
	c := &volumeCopy{layer: newLayer(), limits: unpackLimits{max: s.opts.MaxUnpackedSize}, mapping: m}
	for i, path := range volumes {
		dir := filepath.Join(parent, strconv.Itoa(i))
		if err := c.make(ctx, dir, root, path); err != nil {
			return nil, fmt.Errorf("Volumes of the image: %.200q: %w", path, err) //nolint:staticcheck // the name of a field
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// volumeCopy makes the volumes of one container.
type volumeCopy struct {
	layer   *layer // counts the entries of all copies
	limits  unpackLimits
	mapping *Mapping
}

// make makes a directory under another name and renames it once it is complete.
func (c *volumeCopy) make(ctx context.Context, dir, root, path string) (err error) {
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	unfinished := dir + artifactNew
	if err := os.RemoveAll(unfinished); err != nil { // of an interrupted attempt
		return err
	}
	if err := os.Mkdir(unfinished, dirMode); err != nil {
		return err
	}
	source, err := directory.OpenDirInRoot(root, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = c.empty(unfinished)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		err = fmt.Errorf("the image has no directory there: %w: %w", err, errdefs.ErrInvalidArgument)
	case err == nil:
		err = errors.Join(c.copy(ctx, source, unfinished), source.Close())
	}
	if err == nil {
		return os.Rename(unfinished, dir)
	}
	if isFull(err) {
		err = fmt.Errorf("the disk is full: %w: %w", err, errdefs.ErrResourceExhausted)
	}
	return errors.Join(err, os.RemoveAll(unfinished))
}

func (c *volumeCopy) empty(dir string) error {
	if c.mapping != nil {
		if err := os.Chown(dir, int(c.mapping.UID), int(c.mapping.GID)); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o755)
}

// copy copies what is in source, and then its own owner, mode, attributes and time.
func (c *volumeCopy) copy(ctx context.Context, source *os.File, to string) error {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		e := &exporter{ctx: ctx, out: tar.NewWriter(w)}
		err := e.tree(fmt.Sprintf("/proc/self/fd/%d", source.Fd()), "", false)
		if err == nil {
			err = e.out.Close()
		}
		w.CloseWithError(err)
	}()
	content := c.limits.reader(r)
	literally := archive.WithConvertWhiteout(func(*tar.Header, string) (bool, error) { return true, nil })
	admit := archive.WithFilter(func(entry *tar.Header) (bool, error) { return c.layer.accept(entry, &c.limits) })
	_, err := archive.Apply(ctx, to, content, literally, admit)
	if err == nil {
		_, err = io.Copy(io.Discard, content)
	}
	r.CloseWithError(err)
	<-done
	if err != nil {
		return fmt.Errorf("copy content: %w", &layerError{err: err, dir: to})
	}
	return takeAttributes(source, to)
}

// takeAttributes gives a directory the owner, mode, extended attributes and time of another.
func takeAttributes(source *os.File, to string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(source.Fd()), &st); err != nil {
		return err
	}
	header := &tar.Header{}
	if _, err := attributes(source, header); err != nil {
		return err
	}
	if err := os.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	for record, value := range header.PAXRecords {
		name := strings.TrimPrefix(record, xattrRecord)
		if strings.HasPrefix(name, "trusted.") {
			continue
		}
		if err := unix.Setxattr(to, name, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return unix.UtimesNano(to, []unix.Timespec{st.Atim, st.Mtim})
}
