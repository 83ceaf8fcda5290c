package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	continuity "github.com/containerd/continuity/fs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// damage is a layer's directory or a blob that is not what it should be.
type damage struct {
	layer, blob string // one of them
	reason      error
}

// findDamage reads all of an image: every blob must have its digest, and every
// unpacked layer what its blob says. The error is only that it could not be
// found out.
func (s *Store) findDamage(ctx context.Context, image *Image) (*damage, error) {
	ctx = withLog(inNamespace(ctx), s.log)
	s.mu.Lock()
	targets := map[digest.Digest]ocispec.Descriptor{}
	for _, name := range image.names {
		if target, ok := s.names[name]; ok {
			targets[target.Digest] = target
		}
	}
	s.mu.Unlock()
	for _, target := range targets {
		found, err := s.manifestOf(ctx, target)
		desc, manifest := found.desc, found.manifest
		if err != nil {
			return &damage{blob: target.Digest.String(), reason: err}, ctx.Err()
		}
		whole := []ocispec.Descriptor{target, desc, manifest.Config}
		if image.ArtifactType != "" {
			whole = append(whole, manifest.Layers...)
			manifest.Layers = nil
		}
		for _, blob := range whole {
			if err := s.checkBlob(ctx, blob, nil); err != nil {
				return &damage{blob: blob.Digest.String(), reason: err}, ctx.Err()
			}
		}
		if image.ArtifactType != "" {
			if err := s.growTree(ctx, desc, true); err != nil {
				return nil, err
			}
		}
		for i, blob := range manifest.Layers {
			layer := contents{dir: image.layers[len(image.layers)-1-i], want: map[string]string{}}
			if err := s.checkBlob(ctx, blob, layer.read); err != nil {
				return &damage{blob: blob.Digest.String(), reason: err}, ctx.Err()
			}
			if err := layer.check(ctx); err != nil {
				return &damage{layer: layer.dir, reason: err}, ctx.Err()
			}
		}
	}
	return nil, nil
}

// checkBlob reads a blob to its end, through read if that is given, and
// compares its digest.
func (s *Store) checkBlob(ctx context.Context, desc ocispec.Descriptor, read func(context.Context, io.Reader) error) error {
	blob, err := s.gen.content.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	hash := desc.Digest.Algorithm().Digester()
	from := io.TeeReader(content.NewReader(blob), hash.Hash())
	if read != nil {
		err = read(ctx, from)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, from)
	}
	if err = errors.Join(err, blob.Close()); err != nil {
		return fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	if got := hash.Digest(); got != desc.Digest {
		return fmt.Errorf("blob %s has the digest %s", desc.Digest, got)
	}
	return nil
}

// contents is what a layer's archive says should be in its directory, in
// words, by path.
type contents struct {
	dir  string
	want map[string]string
}

// read notes an archive. As when it was unpacked, the last entry of a name
// counts.
func (c contents) read(ctx context.Context, from io.Reader) error {
	archived, err := decompress(from)
	if err != nil {
		return err
	}
	entries := tar.NewReader(archived)
	for err == nil && ctx.Err() == nil {
		var entry *tar.Header
		if entry, err = entries.Next(); err == nil {
			err = c.note(entry, entries)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, ctx.Err(), archived.Close())
}

func (c contents) note(entry *tar.Header, content io.Reader) error {
	at, err := c.locate(entry.Name)
	if err != nil || at == c.dir || strings.HasPrefix(filepath.Base(at), ".wh.") {
		return err
	}
	if entry.Typeflag != tar.TypeDir {
		// What was a directory until now has lost what was in it.
		maps.DeleteFunc(c.want, func(other, _ string) bool { return strings.HasPrefix(other, at+"/") })
	}
	switch entry.Typeflag {
	case tar.TypeReg:
		hash := sha256.New()
		size, err := io.Copy(hash, content)
		if err != nil {
			return err
		}
		c.want[at] = fileWords(size, hash)
	case tar.TypeDir:
		c.want[at] = "directory"
	case tar.TypeSymlink:
		c.want[at] = "link to " + entry.Linkname
	case tar.TypeLink:
		target, err := c.locate(entry.Linkname)
		if err != nil {
			return err
		}
		c.want[at] = c.want[target]
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		c.want[at] = "special file"
	}
	return nil
}

// locate returns where an entry is unpacked. Links on the way lead where they
// lead now: if they are damaged, so is the layer.
func (c contents) locate(name string) (string, error) {
	dir, base := path.Split(path.Clean("/" + name))
	parent, err := continuity.RootPath(c.dir, dir)
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, base), nil
}

// check compares the directory with what should be there.
func (c contents) check(ctx context.Context) error {
	for _, at := range slices.Sorted(maps.Keys(c.want)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		got, err := inWords(at)
		if err != nil {
			return err
		}
		if got != c.want[at] {
			return fmt.Errorf("%s is a %s, not a %s", at, got, c.want[at])
		}
	}
	return nil
}

func inWords(at string) (string, error) {
	info, err := os.Lstat(at)
	switch {
	case err != nil:
		return "", err
	case info.IsDir():
		return "directory", nil
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(at)
		return "link to " + target, err
	case !info.Mode().IsRegular():
		return "special file", nil
	}
	file, err := os.Open(at)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	size, err := io.Copy(hash, file)
	return fileWords(size, hash), errors.Join(err, file.Close())
}

func fileWords(size int64, hash hash.Hash) string {
	return fmt.Sprintf("file of %d bytes with hash %x", size, hash.Sum(nil))
}
