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

	"github.com/berth-runtime/berth/internal/directory"
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

// pack writes the small files first: whoever looks into an archive needs no more.
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
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is no archive: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if err := fn(path.Clean(header.Name), in); err != nil {
			return err
		}
	}
}

// imageName returns the plain name of one of CRIU's images.
func imageName(name string) (string, bool) {
	base, ok := strings.CutPrefix(name, imagesDir+"/")
	return base, ok && base != "" && base != "." && base != ".." && !strings.Contains(base, "/")
}
