package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/atomicfile"
)

// An archive may have a/b without a. The directory a is then made while
// unpacking, with arbitrary attributes, and in the merged view those
// would hide the attributes that a has in the layers below: /tmp would lose
// its sticky bit. As layers are unpacked at the same time, what lies below is
// known only when the layer is committed; until then the names are kept.

const overlayXattrs = "trusted.overlay."

// note remembers an entry's directories.
func (l *layer) note(entry *tar.Header) {
	name := strings.Trim(path.Clean("/"+entry.Name), "/")
	if entry.Typeflag == tar.TypeDir {
		l.explicit[name] = true
	}
	for dir := path.Dir(name); dir != "." && dir != "/" && !l.parents[dir]; dir = path.Dir(dir) {
		l.parents[dir] = true
	}
}

// implied returns the directories that the archive needs but does not have.
func (l *layer) implied() []string {
	return slices.Sorted(func(yield func(string) bool) {
		for dir := range maps.Keys(l.parents) {
			if !l.explicit[dir] && !yield(dir) {
				return
			}
		}
	})
}

// inherit copies attributes of a layer's implied directories from the layers
// below.
func (t *transfer) inherit(ctx context.Context, layer, parent string) error {
	t.mu.Lock()
	implied := t.unpacked[layer].implied
	t.mu.Unlock()
	if len(implied) == 0 {
		return nil
	}
	below, err := t.store.gen.layerDirs(ctx, parent)
	if err != nil {
		return err
	}
	for _, dir := range implied {
		if err := inheritDir(layer, below, dir); err != nil {
			return fmt.Errorf("keep attributes of directory %s: %w", dir, err)
		}
	}
	return nil
}

func inheritDir(layer string, below []string, dir string) error {
	own, _, err := lookup(layer, dir)
	if err != nil || own == nil {
		return err // it was reached through a symbolic link of this layer
	}
	for _, lower := range below {
		found, hidden, err := lookup(lower, dir)
		if err != nil {
			return err
		}
		if found != nil {
			if err := copyAttributes(filepath.Join(lower, dir), filepath.Join(layer, dir), found); err != nil {
				return err
			}
			// The layer was synced already.
			return atomicfile.SyncDirectory(filepath.Join(layer, dir))
		}
		if hidden {
			return nil
		}
	}
	return nil
}

// lookup finds a directory in one layer, following nothing. Hidden means that
// this layer also hides what is below: something on the way is no directory,
// or is opaque.
func lookup(layer, dir string) (found fs.FileInfo, hidden bool, err error) {
	at := layer
	for part := range strings.SplitSeq(dir, "/") {
		at = filepath.Join(at, part)
		found, err = os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, hidden, nil
		}
		if err != nil {
			return nil, false, err
		}
		if !found.IsDir() {
			return nil, true, nil
		}
		opaque, err := sysx.LGetxattr(at, overlayXattrs+"opaque")
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return nil, false, err
		}
		hidden = hidden || string(opaque) == "y"
	}
	return found, hidden, nil
}

func copyAttributes(from, to string, info fs.FileInfo) error {
	var stat unix.Stat_t
	if err := unix.Lstat(from, &stat); err != nil {
		return err
	}
	if err := os.Lchown(to, int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	if err := os.Chmod(to, info.Mode()); err != nil {
		return err
	}
	names, err := sysx.LListxattr(from)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, overlayXattrs) {
			continue
		}
		value, err := sysx.LGetxattr(from, name)
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(to, name, value, 0); err != nil {
			return err
		}
	}
	return os.Chtimes(to, time.Time{}, info.ModTime())
}
