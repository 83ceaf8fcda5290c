package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/directory"
)

const (
	// overlayAttr begins the attributes by which overlayfs notes its own affairs.
	overlayAttr = "trusted.overlay."
	// labelAttr is the SELinux label of a file, which belongs to the host.
	labelAttr = "security.selinux"
	// tarAttr begins the names of extended attributes in a tar header.
	tarAttr = "SCHILY.xattr."
	// maxAttr bounds one extended attribute; the kernel's own limit is the same.
	maxAttr = 64 << 10
)

// ExportRootfs writes what a container changed in its root file system to w, as
// a tar archive of what is new or different, and returns the paths of what it
// removed. Of the volumes that its image declares, by number with their paths in
// the root file system, all is in the archive, so that they begin with it when
// they are made again. It is exact only if the container does not write meanwhile.
func (s *Store) ExportRootfs(ctx context.Context, key string, volumes map[int]string, w io.Writer) (removed []string, err error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	record, err := s.uses.find(key)
	if err != nil {
		return nil, fmt.Errorf("export root filesystem %s: %w", key, err)
	}
	out := tar.NewWriter(w)
	e := &exporter{ctx: ctx, layers: record.Layers, out: out}
	err = e.tree(s.rootfsPath(key, upperDir), "", false)
	for _, number := range slices.Sorted(maps.Keys(volumes)) {
		if err == nil {
			err = e.tree(s.rootfsPath(key, volumesDir, strconv.Itoa(number)), volumes[number], true)
		}
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return nil, fmt.Errorf("export root filesystem %s: %w", key, err)
	}
	return e.removed, nil
}

// exporter walks the upper directory of an overlay, or a directory with a place in it.
type exporter struct {
	ctx     context.Context
	root    *os.Root
	at      string   // the place of root in the archive
	layers  []string // topmost first
	out     *tar.Writer
	links   map[uint64]string // first name of each inode with several
	removed []string
}

// tree exports a directory that has a place in the archive; one that hides what the layers have there is exported
// itself too. Whatever the container put there, no link leads out.
func (e *exporter) tree(dir, at string, hides bool) (err error) {
	if e.root, err = os.OpenRoot(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.root.Close()) }()
	e.at, e.links = strings.TrimPrefix(path.Clean("/"+at), "/"), map[uint64]string{}
	if hides {
		info, err := e.root.Lstat(".")
		if err != nil {
			return err
		}
		if _, err := e.entry(".", info); err != nil {
			return err
		}
	}
	return e.directory(".", hides)
}

// directory exports what is in a directory. Hidden tells that nothing of it
// that the layers hold is to be seen.
func (e *exporter) directory(dir string, hidden bool) error {
	entries, err := fs.ReadDir(e.root.FS(), dir)
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, entry := range entries {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		name := path.Join(dir, entry.Name())
		info, err := e.root.Lstat(name)
		if err != nil {
			return err
		}
		if isWhiteout(info) {
			e.removed = append(e.removed, path.Join("/", e.at, name))
			continue
		}
		names[entry.Name()] = true
		below, err := e.entry(name, info)
		if err != nil {
			return err
		}
		if info.IsDir() {
			if err := e.directory(name, hidden || below); err != nil {
				return err
			}
		}
	}
	if hidden {
		e.removed = append(e.removed, e.hides(dir, names)...)
	}
	return nil
}

// isWhiteout tells whether an entry stands for one that was removed.
func isWhiteout(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode()&fs.ModeCharDevice != 0 && stat.Rdev == 0
}

// hides lists what the layers have in a directory beside the names that are there now.
func (e *exporter) hides(dir string, names map[string]bool) []string {
	var hidden []string
	for _, layer := range e.layers {
		found, err := directory.OpenDirBeneath(layer, path.Join(e.at, dir))
		if err != nil {
			continue // this layer has no such directory
		}
		entries, err := found.ReadDir(-1)
		if err = errors.Join(err, found.Close()); err != nil {
			continue // as above
		}
		for _, entry := range entries {
			if !names[entry.Name()] {
				names[entry.Name()] = true
				hidden = append(hidden, path.Join("/", e.at, dir, entry.Name()))
			}
		}
	}
	return hidden
}

// entry writes one file, and tells of a directory whether it hides what is below it.
func (e *exporter) entry(name string, info fs.FileInfo) (opaque bool, err error) {
	if info.Mode()&fs.ModeSocket != 0 {
		return false, nil // it means nothing without its process, which creates it again
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = e.root.Readlink(name); err != nil {
			return false, err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return false, err
	}
	place := path.Join(e.at, name)
	header.Name, header.Uname, header.Gname, header.Format = place, "", "", tar.FormatPAX
	if info.IsDir() {
		header.Name += "/"
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && !info.IsDir() && stat.Nlink > 1 {
		if first := e.links[stat.Ino]; first != "" {
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
			return false, e.out.WriteHeader(header)
		}
		e.links[stat.Ino] = place
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		return false, e.out.WriteHeader(header)
	}
	file, err := e.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if opaque, err = attributes(file, header); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	if err := e.out.WriteHeader(header); err != nil || info.IsDir() {
		return opaque, err
	}
	if _, err := io.CopyN(e.out, file, header.Size); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return false, nil
}

// attributes puts extended attributes into a header and tells whether the file
// is a directory that hides what lies below it.
func attributes(file *os.File, header *tar.Header) (opaque bool, err error) {
	fd := int(file.Fd())
	list := make([]byte, maxAttr)
	n, err := unix.Flistxattr(fd, list)
	if errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	value := make([]byte, maxAttr)
	for attr := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if attr == "" || attr == labelAttr {
			continue
		}
		size, err := unix.Fgetxattr(fd, attr, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read attribute %s: %w", attr, err)
		}
		own, overlay := strings.CutPrefix(attr, overlayAttr)
		switch {
		case overlay && own == "opaque":
			opaque = string(value[:size]) == "y"
		case overlay && (own == "redirect" || own == "metacopy"):
			return false, fmt.Errorf("overlayfs keeps a part of it elsewhere (%s), which cannot be exported: %w", attr, errdefs.ErrFailedPrecondition)
		case overlay:
		default:
			if header.PAXRecords == nil {
				header.PAXRecords = map[string]string{}
			}
			header.PAXRecords[tarAttr+attr] = string(value[:size])
		}
	}
	return opaque, nil
}

// ImportRootfs makes the changes that ExportRootfs wrote in the root file system
// that is mounted at target. Nothing outside of target is touched.
func (s *Store) ImportRootfs(ctx context.Context, target string, changes io.Reader, removed []string) (err error) {
	literally := archive.WithConvertWhiteout(func(*tar.Header, string) (bool, error) { return true, nil })
	if _, err := archive.Apply(ctx, target, changes, literally); err != nil {
		return fmt.Errorf("import root filesystem changes: %w", err)
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		return fmt.Errorf("import root filesystem changes: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	for _, name := range slices.Backward(removed) {
		name = strings.TrimPrefix(path.Clean("/"+name), "/")
		if name == "" {
			return fmt.Errorf("import root filesystem changes: the root is said to be removed: %w", errdefs.ErrInvalidArgument)
		}
		if err := root.RemoveAll(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("import root filesystem changes: %w", err)
		}
	}
	return nil
}
