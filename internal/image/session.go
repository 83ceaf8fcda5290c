package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/atomicfile"
)

// The file session is there as long as a store is open, and holds the boot ID
// of the kernel. Found at the next start with another one, it tells that the
// machine went down under an open store. What was synced should be there then,
// but disks and file systems have been seen to lie; so every image is read
// again before a container gets it. See verify.
const (
	sessionFile = "session"
	bootIDFile  = "/proc/sys/kernel/random/boot_id"
)

// doubts are the images that are still to be read again.
type doubts struct {
	mu  sync.Mutex
	ids map[string]bool
}

func (d *doubts) has(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ids[id]
}

func (d *doubts) settle(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.ids, id)
}

// beginSession says whether the machine went down under the open store. If it
// did, the old session stands until all images are verified.
func (s *Store) beginSession() (unclean bool, err error) {
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return false, fmt.Errorf("read boot ID: %w", err)
	}
	last, err := os.ReadFile(s.sessionPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read session of image store: %w", err)
	}
	if err == nil && strings.TrimSpace(string(last)) != strings.TrimSpace(string(boot)) {
		return true, nil
	}
	return false, s.writeSession(boot)
}

func (s *Store) writeSession(boot []byte) error {
	if err := atomicfile.WriteDurable(s.sessionPath(), boot, fileMode); err != nil {
		return fmt.Errorf("write session of image store: %w", err)
	}
	return nil
}

func (s *Store) sessionPath() string { return filepath.Join(s.opts.Root, sessionFile) }

// endSession is called when nothing is written any more.
func (s *Store) endSession() error {
	s.doubts.mu.Lock()
	defer s.doubts.mu.Unlock()
	if s.doubts.ids != nil {
		return nil // not all images are verified: the next start goes on
	}
	return os.Remove(s.sessionPath())
}

// verifyAll reads every image again, then begins a new session.
func (s *Store) verifyAll() {
	s.log.Warn("the machine went down while images were in use; they are read again", "images", len(s.List()))
	for _, image := range s.List() {
		if err := s.verify(s.ctx, image.ID); err != nil {
			if s.ctx.Err() != nil {
				return
			}
			s.log.Error("image was damaged and has to be pulled again", "image", image.names, "error", err)
		}
	}
	boot, err := os.ReadFile(bootIDFile)
	if err == nil {
		err = s.writeSession(boot)
	}
	if err != nil {
		s.log.Error("cannot record that images are verified; the next start does it again", "error", err)
		return
	}
	s.doubts.mu.Lock()
	s.doubts.ids = nil
	s.doubts.mu.Unlock()
}

// verify reads an image again if it is in doubt. If it is damaged, it and all
// others that share the damage are dropped, so that a pull fetches them again;
// then the error is ErrNotFound.
func (s *Store) verify(ctx context.Context, id string) error {
	if !s.doubts.has(id) {
		return nil
	}
	key := "verify " + id
	if err := s.locks.Lock(ctx, key); err != nil {
		return err
	}
	defer s.locks.Unlock(key)
	image := s.index.Load().byID[id]
	if image == nil {
		return fmt.Errorf("image %s: %w", id, errdefs.ErrNotFound)
	}
	if !s.doubts.has(id) {
		return nil
	}
	found, err := s.findDamage(ctx, image)
	if err != nil {
		return fmt.Errorf("verify image %s: %w", id, err)
	}
	if found != nil {
		if err := s.dropDamaged(ctx, found); err != nil {
			return fmt.Errorf("drop damaged image %s: %w", id, err)
		}
		return fmt.Errorf("image %s was damaged when the machine went down (%w): %w", id, found.reason, errdefs.ErrNotFound)
	}
	s.doubts.settle(id)
	return nil
}

// dropDamaged removes every image that has the damaged layer or blob.
func (s *Store) dropDamaged(ctx context.Context, found *damage) error {
	ctx = withLog(inNamespace(ctx), s.log)
	if err := s.forgetDamaged(ctx, found); err != nil {
		return err
	}
	return s.GC(ctx)
}

func (s *Store) forgetDamaged(ctx context.Context, found *damage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.names.clone()
	for name, target := range s.names {
		image := s.loaded[target.Digest.String()]
		if slices.Contains(image.layers, found.layer) || slices.Contains(image.blobs, found.blob) {
			delete(changed, name)
			s.doubts.settle(image.id)
		}
	}
	if err := s.reserve.room(func() error { return s.rename(ctx, changed) }); err != nil {
		return err
	}
	s.names = changed
	s.forgetUnnamed()
	s.publish()
	return nil
}
