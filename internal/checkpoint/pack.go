package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/directory"
	"github.com/berth-runtime/berth/internal/text"
)

const (
	// maxEntries bounds the entries of an archive, maxDepth the directories above one.
	maxEntries = 1_000_000
	maxDepth   = 255
	// sparseRecords begins the records of sparse files.
	sparseRecords = "GNU.sparse."
	// maxShownName bounds a name in an error.
	maxShownName = 256
)

// partial ends the name of an archive that is not complete.
const partial = ".partial"

// errEnough ends a walk through an archive early.
var errEnough = errors.New("enough")

// Partial is the name that Pack gives an archive while it is not complete.
func Partial(to string) string { return to + partial }

// Pack writes the archive of a directory to the file `to`, which is replaced in
// one step once the archive is complete. After an error nothing of it is left.
func (d Dir) Pack(ctx context.Context, to string) (err error) {
	fresh := Partial(to)
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fileMode)
	if err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	err = errors.Join(d.pack(ctx, f), f.Close())
	if err == nil {
		err = os.Rename(fresh, to)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write checkpoint %s: %w", to, err), RemoveFile(fresh))
	}
	return nil
}

// pack writes the small files first: tools that inspect an archive need no more.
func (d Dir) pack(ctx context.Context, w io.Writer) error {
	var rest []string
	err := filepath.WalkDir(string(d), func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() && file == string(d) {
			return err
		}
		name, err := filepath.Rel(string(d), file)
		if err == nil && !slices.Contains(documents, name) {
			rest = append(rest, name)
		}
		return err
	})
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	for _, name := range slices.Concat(documents, rest) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.add(out, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return out.Close()
}

func (d Dir) add(out *tar.Writer, name string) (err error) {
	file := filepath.Join(string(d), name)
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return fmt.Errorf("it is no regular file: %w", errdefs.ErrInternal)
	}
	header, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	header.Name, header.Uname, header.Gname = name, "", ""
	if info.IsDir() {
		header.Name += "/"
		return out.WriteHeader(header)
	}
	f, err := directory.OpenRegular(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.CopyN(out, f, header.Size)
	return err
}

// each calls fn with every regular file of the archive, by its clean name. An
// fn that returns errEnough ends the walk.
func (a *Archive) each(fn func(name string, content io.Reader) error) (err error) {
	f, err := directory.OpenRegular(a.path)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	err = eachFile(f, fn)
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func eachFile(r io.Reader, fn func(name string, content io.Reader) error) error {
	in := tar.NewReader(r)
	for entries := 0; ; entries++ {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is no archive: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err := checkEntry(header, entries); err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if err := fn(path.Clean(header.Name), in); err != nil {
			return err
		}
	}
}

// checkEntry refuses what makes an archive take more room on disk than it has bytes, or too many
// inodes.
func checkEntry(header *tar.Header, entries int) error {
	sparse := header.Typeflag == tar.TypeGNUSparse
	for key := range header.PAXRecords {
		sparse = sparse || strings.HasPrefix(key, sparseRecords)
	}
	switch {
	case sparse:
		return fmt.Errorf("entry %s: sparse files are not accepted: %w", text.Cut(header.Name, maxShownName), errdefs.ErrInvalidArgument)
	case entries >= maxEntries:
		return fmt.Errorf("it has more than %d entries: %w", maxEntries, errdefs.ErrInvalidArgument)
	case strings.Count(path.Clean(header.Name), "/") >= maxDepth:
		return fmt.Errorf("entry %s: it is more than %d directories deep: %w", text.Cut(header.Name, maxShownName), maxDepth, errdefs.ErrInvalidArgument)
	}
	return nil
}

// CheckTree refuses an archive of a tree, as ExportTree writes it, with too many entries, with sparse
// files or with paths that are too deep. What remains takes no more bytes on disk than the archive has.
func CheckTree(r io.Reader) error {
	return eachFile(r, func(string, io.Reader) error { return nil })
}

// imageName returns the plain name of one of CRIU's images.
func imageName(name string) (string, bool) {
	base, ok := strings.CutPrefix(name, imagesDir+"/")
	return base, ok && base != "" && base != "." && base != ".." && !strings.Contains(base, "/")
}
