package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
)

const generationPrefix = "store-"

// generation is one set of databases with the blobs and layers that they
// describe. There is a second one only after the first was found damaged.
type generation struct {
	dir     string
	db      *metadata.DB
	backend content.Store         // blobs on disk
	content content.Store         // the same as the metadata knows them
	cleaner snapshots.Cleaner     // unpacked layers on disk
	layers  snapshots.Snapshotter // the same as the metadata knows them
	images  images.Store
	leases  leases.Manager
}

// openGeneration opens the newest generation in root, or begins the next one
// if the newest is damaged.
func openGeneration(ctx context.Context, root string, log *slog.Logger) (*generation, error) {
	numbers, err := listGenerations(root)
	if err != nil {
		return nil, err
	}
	if len(numbers) == 0 {
		return newGeneration(ctx, generationDir(root, 1))
	}
	newest := numbers[len(numbers)-1]
	dir := generationDir(root, newest)
	var gen *generation
	if err = checkGeneration(dir); err == nil {
		gen, err = newGeneration(ctx, dir)
	}
	if !errors.Is(err, errDamaged) {
		return gen, err
	}
	log.Error("image databases are damaged and set aside; images are made again from their blobs",
		"store", dir, "error", err)
	if err := setAside(root, dir); err != nil {
		return nil, err
	}
	return newGeneration(ctx, generationDir(root, newest+1))
}

func generationDir(root string, number int) string {
	return filepath.Join(root, generationPrefix+strconv.Itoa(number))
}

// listGenerations returns the numbers of the generations in root, ascending.
func listGenerations(root string) ([]int, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, entry := range entries {
		digits, ok := strings.CutPrefix(entry.Name(), generationPrefix)
		if number, err := strconv.Atoi(digits); ok && err == nil && number > 0 {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func newGeneration(ctx context.Context, dir string) (_ *generation, err error) {
	// The content store makes its directory for blobs with the first one.
	if err := os.MkdirAll(filepath.Join(dir, "content", "blobs"), dirMode); err != nil {
		return nil, err
	}
	database, err := openBolt(filepath.Join(dir, "meta.db"))
	if err != nil {
		return nil, err
	}
	g := &generation{dir: dir}
	var layers snapshots.Snapshotter
	defer func() {
		if err != nil {
			err = errors.Join(err, database.Close())
			if layers != nil {
				err = errors.Join(err, layers.Close())
			}
		}
	}()
	if g.backend, err = local.NewStore(filepath.Join(dir, "content")); err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	layers, err = overlay.NewSnapshotter(dir, overlay.AsynchronousRemove, overlay.WithUpperdirLabel)
	if err != nil {
		return nil, fmt.Errorf("open overlay snapshotter: %w", err)
	}
	cleaner, ok := layers.(snapshots.Cleaner)
	if !ok {
		return nil, fmt.Errorf("overlay snapshotter cannot clean up: %w", errdefs.ErrNotImplemented)
	}
	g.cleaner = cleaner
	// A collection forgets a blob first and deletes it after. By default a writer
	// of the blob in between gets the forgotten one, and appends to it; so
	// nothing is lent.
	g.db = metadata.NewDB(database, g.backend, map[string]snapshots.Snapshotter{snapshotterName: layers},
		metadata.WithPolicyIsolated)
	if err := g.db.Init(ctx); err != nil {
		return nil, fmt.Errorf("prepare image database: %w", err)
	}
	g.content = g.db.ContentStore()
	g.layers = g.db.Snapshotter(snapshotterName)
	g.images = metadata.NewImageStore(g.db)
	g.leases = metadata.NewLeaseManager(g.db)
	return g, nil
}

func (g *generation) close() error {
	return errors.Join(g.layers.Close(), g.db.Close())
}

func (g *generation) listNames(ctx context.Context) (names, error) {
	records, err := g.images.List(ctx)
	if err != nil {
		return nil, err
	}
	found := names{}
	for _, record := range records {
		found[record.Name] = record.Target
	}
	return found, nil
}

// sweep removes what only an interrupted process can have left: leases other
// than those of chains in use, half written blobs, blobs and layers that the
// metadata does not know. The collection that follows takes the rest.
func (g *generation) sweep(ctx context.Context, inUse func(chain string) bool) error {
	found, err := g.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range found {
		chain, ok := strings.CutPrefix(lease.ID, useLeasePrefix)
		if ok && inUse(chain) {
			if _, err := g.layerDirs(ctx, chain); err == nil {
				continue
			}
		}
		if err := g.leases.Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete lease %s: %w", lease.ID, err)
		}
	}
	// The content store cannot even list one that was torn while it was made.
	ingests := filepath.Join(g.dir, "content", "ingest")
	if err := os.RemoveAll(ingests); err != nil {
		return fmt.Errorf("remove half written blobs: %w", err)
	}
	if err := os.Mkdir(ingests, dirMode); err != nil {
		return fmt.Errorf("remove half written blobs: %w", err)
	}
	if err := g.sweepBlobs(ctx); err != nil {
		return err
	}
	if err := g.sweepLayers(ctx); err != nil {
		return fmt.Errorf("remove half made layers: %w", err)
	}
	return g.markLayersDirty(ctx)
}

// sweepLayers removes directories without a record. One would stand in the way
// of the next layer that gets its number.
func (g *generation) sweepLayers(ctx context.Context) error {
	err := g.cleaner.Cleanup(ctx)
	if !errdefs.IsNotFound(err) {
		return err
	}
	// There is no record of anything yet.
	dir := filepath.Join(g.dir, "snapshots")
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	return err
}

func (g *generation) sweepBlobs(ctx context.Context) error {
	var orphans []content.Info
	err := g.backend.Walk(ctx, func(info content.Info) error {
		_, err := g.content.Info(ctx, info.Digest)
		if errdefs.IsNotFound(err) {
			orphans = append(orphans, info)
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	for _, orphan := range orphans {
		if err := g.backend.Delete(ctx, orphan.Digest); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove blob %s: %w", orphan.Digest, err)
		}
	}
	return nil
}

// markLayersDirty makes the next collection compare the snapshotter with the
// metadata. It does so by itself only after a removal, but a process that was
// killed between the two databases leaves layers without any.
func (g *generation) markLayersDirty(ctx context.Context) error {
	const key = "sweep"
	if _, err := g.layers.Prepare(ctx, key, ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("prepare sweep of layers: %w", err)
	}
	if err := g.layers.Remove(ctx, key); err != nil {
		return fmt.Errorf("prepare sweep of layers: %w", err)
	}
	return nil
}

// layerDirs returns the directories of a chain of unpacked layers, the topmost
// first, and checks that each is there.
func (g *generation) layerDirs(ctx context.Context, chain string) ([]string, error) {
	var dirs []string
	for chain != "" {
		info, err := g.layers.Stat(ctx, chain)
		if err != nil {
			return nil, fmt.Errorf("find layer %s: %w", chain, err)
		}
		dir := info.Labels[upperdirLabel]
		if !strings.HasPrefix(dir, g.dir+"/") {
			return nil, fmt.Errorf("find layer %s: directory %q is not in the store: %w", chain, dir, errdefs.ErrInternal)
		}
		if stat, err := os.Stat(dir); err != nil || !stat.IsDir() {
			return nil, fmt.Errorf("find layer %s: directory %s: %w: %w", chain, dir, errors.Join(err, fs.ErrNotExist), errdefs.ErrNotFound)
		}
		dirs = append(dirs, dir)
		chain = info.Parent
	}
	return dirs, nil
}

// upperdirLabel is where the overlay snapshotter tells a layer's directory.
const upperdirLabel = "containerd.io/snapshot/overlay.upperdir"
