// Package cache keeps what takes long to make or comes from the network, outside the tree and from one run to the next.
package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Cache holds directories which are complete or not there.
type Cache struct{ dir string }

// Open opens the cache of that name in the user's cache directory.
func Open(name string) (Cache, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return Cache{}, fmt.Errorf("find a cache directory: %w", err)
	}
	dir = filepath.Join(dir, "berth", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Cache{}, fmt.Errorf("make the cache directory: %w", err)
	}
	return Cache{dir: dir}, nil
}

// Get returns the directory of what name and recipe describe. If it is not there yet, fill makes it. The caller must
// not change what is in it.
func (c Cache) Get(name, recipe string, fill func(dir string) error) (_ string, err error) {
	dir := filepath.Join(c.dir, fmt.Sprintf("%s-%.6x", name, sha256.Sum256([]byte(recipe))))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return dir, err
	}
	unfinished, err := os.MkdirTemp(c.dir, "unfinished-")
	if err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(unfinished)) }()
	if err := fill(unfinished); err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	if err := os.Rename(unfinished, dir); err != nil {
		return "", fmt.Errorf("keep %s: %w", name, err)
	}
	return dir, nil
}
