package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

// uses knows the writable layers and which chains of layers lie under them, and
// the volumes.
type uses struct {
	mu      sync.Mutex
	rootfs  map[string]*use
	byChain map[string]int
}

type use struct {
	record *rootfs
	// complete is false while it is being made.
	complete bool
	// stale says that it is from before the machine went down: it can only be
	// removed, and keeps no layer.
	stale bool
	// label is the SELinux label of all its files, empty for none.
	label string
}

func (u *uses) init() {
	u.rootfs, u.byChain = map[string]*use{}, map[string]int{}
}

// begin notes that key is going to use an image's layers, unless it does so
// already (made). Finding the image and noting the use are one step, so that
// removing the image sees the use or the use does not see the image.
func (u *uses) begin(key, imageID string, find func() (*Image, error)) (record *rootfs, made bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if existing := u.rootfs[key]; existing != nil {
		// The image may have been removed since, so its ID alone must do too.
		image, err := find()
		if imageID != existing.record.Image && (err != nil || image.ID != existing.record.Image) {
			return nil, false, fmt.Errorf("it exists on image %s: %w", existing.record.Image, errdefs.ErrAlreadyExists)
		}
		if !existing.complete {
			return nil, false, fmt.Errorf("it is being made: %w", errdefs.ErrUnavailable)
		}
		if existing.stale {
			return nil, false, fmt.Errorf("it is from before the machine went down: %w", errdefs.ErrAlreadyExists)
		}
		return existing.record, true, nil
	}
	image, err := find()
	if err != nil {
		return nil, false, err
	}
	record = &rootfs{Version: rootfsVersion, Image: image.ID, Chain: image.chain, Layers: image.layers}
	u.rootfs[key] = &use{record: record}
	u.byChain[record.Chain]++
	return record, false, nil
}

func (u *uses) complete(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rootfs[key].complete = true
}

// end forgets a use and returns its chain if that is not in use any more.
func (u *uses) end(key string) (chain string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	existing := u.rootfs[key]
	if existing == nil {
		return ""
	}
	delete(u.rootfs, key)
	if existing.stale {
		return ""
	}
	chain = existing.record.Chain
	if u.byChain[chain]--; u.byChain[chain] > 0 {
		return ""
	}
	delete(u.byChain, chain)
	return chain
}

// endStale forgets a use that is from before the machine went down.
func (u *uses) endStale(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if existing := u.rootfs[key]; existing != nil && existing.stale {
		delete(u.rootfs, key)
	}
}

func (u *uses) find(key string) (*rootfs, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	existing := u.rootfs[key]
	if existing == nil || !existing.complete || existing.stale {
		return nil, fmt.Errorf("there is none that is whole: %w", errdefs.ErrNotFound)
	}
	return existing.record, nil
}

func (u *uses) label(key string) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if existing := u.rootfs[key]; existing != nil {
		return existing.label
	}
	return ""
}

func (u *uses) setLabel(key, label string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	existing := u.rootfs[key]
	if existing == nil || !existing.complete || existing.stale {
		return fmt.Errorf("there is none that is whole: %w", errdefs.ErrNotFound)
	}
	existing.label = label
	return nil
}

// held says whether a container uses the layers of a chain.
func (u *uses) held(chain string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.byChain[chain] > 0
}

// beneath says whether a container uses layers in a directory.
func (u *uses) beneath(dir string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, existing := range u.rootfs {
		if existing.stale {
			continue
		}
		for _, layer := range existing.record.Layers {
			if strings.HasPrefix(layer, dir+"/") {
				return true
			}
		}
	}
	return false
}

// recoverUses reads the records of all writable layers and volumes. One that cannot be
// read is not complete: it can only be removed. The same goes for all of them
// if the machine went down: they were not synced.
func (s *Store) recoverUses(stale bool) error {
	entries, err := os.ReadDir(s.rootfsPath(""))
	if err != nil {
		return fmt.Errorf("list root filesystems: %w", err)
	}
	for _, entry := range entries {
		if err := s.recoverUse(entry.Name(), s.rootfsPath(entry.Name(), rootfsRecord), stale); err != nil {
			return err
		}
	}
	volumes, err := os.ReadDir(s.volumePath(""))
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	for _, entry := range volumes {
		if err := s.recoverUse(volumeUse+entry.Name(), s.volumePath(entry.Name()), stale); err != nil {
			return err
		}
	}
	return nil
}

// recoverUse reads one record. One that a newer version wrote is an error: it is left as it is.
func (s *Store) recoverUse(key, file string, stale bool) error {
	record, err := readRootfs(file)
	if errors.Is(err, errNewer) {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if err != nil {
		s.log.Warn("root filesystem or volume is not complete and can only be removed", "key", key, "error", err)
		return nil
	}
	s.uses.rootfs[key] = &use{record: record, complete: true, stale: stale}
	if !stale {
		s.uses.byChain[record.Chain]++
	}
	return nil
}

// errNewer is the record of a writable layer or volume that a newer version wrote.
var errNewer = errors.New("record of a newer version")

func readRootfs(path string) (*rootfs, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var record rootfs
	if err := json.Unmarshal(data, &record); err != nil {
		return nil, err
	}
	if record.Version > rootfsVersion {
		return nil, fmt.Errorf("%w: version %d, this version reads up to %d", errNewer, record.Version, rootfsVersion)
	}
	if record.Version != rootfsVersion {
		return nil, fmt.Errorf("version %d is not known", record.Version)
	}
	return &record, nil
}

// hasChain says whether an image has the chain.
func (i *index) hasChain(chain string) bool {
	for _, image := range i.sorted {
		if image.chain == chain {
			return true
		}
	}
	return false
}
