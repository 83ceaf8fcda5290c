package imagefactory

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// undocumented are the directories of a package that no program needs.
var undocumented = []string{
	"usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/locale", "usr/share/bug", "usr/share/doc-base",
}

// PackageFiles returns what a Debian package (a .deb file) installs, without
// its documentation and without the directories: the layer has only those
// which a file of it is in.
func PackageFiles(ctx context.Context, deb string) ([]File, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	cmd.Stderr = &stderr
	archive, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w: %s", deb, err, bytes.TrimSpace(stderr.Bytes()))
	}
	var files []File
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the files of %s: %w", deb, err)
		}
		name := clean(h.Name)
		if h.Typeflag == tar.TypeDir || slices.ContainsFunc(undocumented, func(dir string) bool {
			return strings.HasPrefix(name, dir+"/")
		}) {
			continue
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return nil, fmt.Errorf("read %s of %s: %w", name, deb, err)
		}
		target := h.Linkname
		if h.Typeflag == tar.TypeLink {
			target = clean(target)
		}
		files = append(files, File{
			Path: name, Kind: h.Typeflag, Mode: h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky),
			UID: h.Uid, GID: h.Gid, Content: content, Target: target, ModTime: h.ModTime,
		})
	}
}

// clean turns "./usr/bin/x" into "usr/bin/x".
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }
