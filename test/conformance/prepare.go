package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-runtime/berth/test/cache"
	"github.com/berth-runtime/berth/test/registry"
)

// What Prepare puts into a directory.
const (
	preparedSuite    = "suite"    // critest and ginkgo
	preparedVersion  = "version"  // that of critest
	preparedRegistry = "registry" // the data of a docker-registry with all images
)

// Prepare puts all that the suite needs into a directory, for a machine with neither network nor compiler: there
// -prepared names the directory. tree is the repository.
func Prepare(ctx context.Context, tree, dir string) error {
	im, s, err := build(ctx, tree)
	if err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(dir, preparedSuite), os.DirFS(s.dir)); err != nil {
		return fmt.Errorf("copy critest: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, preparedVersion), []byte(s.version), 0o600); err != nil {
		return fmt.Errorf("note critest's version: %w", err)
	}
	data := filepath.Join(dir, preparedRegistry)
	if err := os.Mkdir(data, 0o755); err != nil {
		return fmt.Errorf("make a directory for the registry: %w", err)
	}
	r, err := registry.Start(ctx, registry.Options{Dir: data})
	if err != nil {
		return err
	}
	return errors.Join(im.push(ctx, r.Host), r.Stop())
}

// build makes the images and the suite, or takes them from the cache.
func build(ctx context.Context, tree string) (images, suite, error) {
	c, err := cache.Open("conformance")
	if err != nil {
		return nil, suite{}, err
	}
	im, err := makeImages(ctx, c)
	if err != nil {
		return nil, suite{}, err
	}
	s, err := buildSuite(ctx, c, tree, im[digestImage].Descriptor.Digest.String())
	return im, s, err
}

// openPrepared returns the suite that Prepare put into a directory.
func openPrepared(dir string) (suite, error) {
	version, err := os.ReadFile(filepath.Join(dir, preparedVersion))
	if err != nil {
		return suite{}, fmt.Errorf("find a prepared critest: %w", err)
	}
	return suite{dir: filepath.Join(dir, preparedSuite), version: strings.TrimSpace(string(version))}, nil
}
