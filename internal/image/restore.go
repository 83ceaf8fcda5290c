package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A damaged generation gets the names.json that was in force as lostNames. As
// long as that file is there, its images are to be made again; then
// restoredMark takes its place.
const (
	lostNames    = "names.json"
	restoredMark = "restored"
)

// setAside moves the names into a generation that was found damaged, so that
// they are not lost if making them again is interrupted.
func setAside(root, dir string) error {
	kept := filepath.Join(dir, lostNames)
	if _, err := os.Stat(kept); err == nil {
		return nil
	}
	err := os.Rename(filepath.Join(root, lostNames), kept)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set aside image names: %w", err)
	}
	return nil
}

// lostStores returns the directories of damaged generations whose images are
// still to be made again.
func (s *Store) lostStores() ([]string, error) {
	numbers, err := listGenerations(s.opts.Root)
	if err != nil {
		return nil, fmt.Errorf("list image stores: %w", err)
	}
	var lost []string
	for _, number := range numbers {
		dir := generationDir(s.opts.Root, number)
		if dir == s.gen.dir {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, lostNames)); err == nil {
			lost = append(lost, dir)
		}
	}
	return lost, nil
}

// restore makes the images of a damaged generation again, from its blobs, as
// if these came from a registry: each is hashed and unpacked again. An image
// whose blobs are damaged too has to be pulled.
func (s *Store) restore(dir string) {
	had, err := readNames(filepath.Join(dir, lostNames))
	if err != nil {
		s.log.Error("images of a damaged store have to be pulled again; it is left as it is", "store", dir, "error", err)
		return
	}
	from := blobDir(filepath.Join(dir, "content", "blobs"))
	for name, target := range had {
		if s.ctx.Err() != nil {
			return // the next start goes on
		}
		if s.index.Load().byName[name] != nil {
			continue // pulled in the meantime
		}
		_, err := s.transfer(s.ctx, source{
			target: target, fetcher: from, work: s.work.forPull(""), progress: newProgress(name),
		}, []string{name})
		switch {
		case err == nil:
			s.log.Info("image made again from its blobs", "image", name)
		case s.ctx.Err() != nil || isFull(err):
			s.log.Warn("images are not all made again; the next start goes on", "error", err)
			return
		default:
			s.log.Warn("image cannot be made again and has to be pulled", "image", name, "error", err)
		}
	}
	if err := os.Rename(filepath.Join(dir, lostNames), filepath.Join(dir, restoredMark)); err != nil {
		s.log.Error("cannot mark damaged image store as restored", "store", dir, "error", err)
		return
	}
	s.kickCollector()
}

// blobDir fetches blobs from a directory laid out as a content store.
type blobDir string

// Fetch opens one blob.
func (d blobDir) Fetch(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	return os.Open(filepath.Join(string(d), desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
}
