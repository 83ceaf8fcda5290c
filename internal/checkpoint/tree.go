package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"
)

// ExportTree writes the directories, regular files and symbolic links of a directory as a tar archive. Containers may
// change it meanwhile: no link that they put there leads out of it.
func ExportTree(ctx context.Context, w io.Writer, dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("export %s: %w", dir, err)
		}
	}()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	out := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || name == "." {
			return err
		}
		return exportFile(out, root, name)
	})
	return errors.Join(err, out.Close())
}

func exportFile(out *tar.Writer, root *os.Root, name string) error {
	info, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	target := ""
	switch info.Mode().Type() {
	case 0:
		return exportRegular(out, root, name)
	case fs.ModeDir:
	case fs.ModeSymlink:
		if target, err = root.Readlink(name); err != nil {
			return err
		}
	default:
		return nil
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	return writeHeader(out, header, name)
}

func writeHeader(out *tar.Writer, header *tar.Header, name string) error {
	header.Name, header.Uname, header.Gname, header.Format = name, "", "", tar.FormatPAX
	if header.Typeflag == tar.TypeDir {
		header.Name += "/"
	}
	return out.WriteHeader(header)
}

// exportRegular takes the size from the open file, and nothing of what replaced it meanwhile.
func exportRegular(out *tar.Writer, root *os.Root, name string) (err error) {
	file, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	header, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	if err := writeHeader(out, header, name); err != nil {
		return err
	}
	if _, err := io.CopyN(out, file, header.Size); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// ImportTree puts what ExportTree wrote into a directory, and nothing anywhere else.
func ImportTree(ctx context.Context, dir string, r io.Reader) error {
	if _, err := archive.Apply(ctx, dir, r); err != nil {
		return fmt.Errorf("import into %s: %w", dir, err)
	}
	return nil
}
