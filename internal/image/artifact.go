package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	continuity "github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/atomicfile"
)

// An artifact is a manifest whose configuration is not that of an image: files
// that are kept in a registry. No container runs from it, but it can be a
// volume. Its files lie, ready to be mounted, in
//
//	store-<n>/artifacts/<digest of the manifest>/tree/
//	store-<n>/artifacts/<digest of the manifest>/size   what the tree takes beside the blobs
//
// A file is a hard link to its blob. So the tree costs nothing, and it outlives
// the blob while a container uses it.
const (
	artifactsDir  = "artifacts"
	artifactTree  = "tree"
	artifactSize  = "size"
	artifactNew   = ".new"
	artifactChain = "artifact "

	// maxTitle bounds the name of a file, with its directories.
	maxTitle = 1024

	// unpackAnnotation marks a layer of ORAS that is an archived directory.
	unpackAnnotation = "io.deis.oras.content.unpack"
)

// chainOfArtifact is the name under which uses know an artifact's tree.
func chainOfArtifact(manifest digest.Digest) string { return artifactChain + manifest.String() }

// growing are the trees that belong to a transfer, which no collection takes.
type growing struct {
	mu      sync.Mutex
	waiting map[string]int // transfers by name of the tree
}

func (g *growing) begin(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting == nil {
		g.waiting = map[string]int{}
	}
	g.waiting[name]++
}

func (g *growing) end(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting[name]--; g.waiting[name] == 0 {
		delete(g.waiting, name)
	}
}

func treeName(manifest digest.Digest) string {
	return manifest.Algorithm().String() + "-" + manifest.Encoded()
}

// treeDir is where the files of an artifact are.
func (g *generation) treeDir(manifest digest.Digest) string {
	return filepath.Join(g.dir, artifactsDir, treeName(manifest), artifactTree)
}

// isArtifact says whether a manifest with such a configuration is an artifact.
func isArtifact(config ocispec.Descriptor) bool { return !images.IsConfigType(config.MediaType) }

// artifactType is what an artifact's maker calls its kind.
func artifactType(manifest ocispec.Manifest) string {
	if manifest.ArtifactType != "" {
		return manifest.ArtifactType
	}
	return manifest.Config.MediaType
}

// growTree makes the tree of an artifact whose blobs are all there. Anew means
// that one which is there is not to be trusted.
func (s *Store) growTree(ctx context.Context, desc ocispec.Descriptor, again bool) error {
	name := treeName(desc.Digest)
	if err := s.locks.Lock(ctx, artifactChain+name); err != nil {
		return err
	}
	defer s.locks.Unlock(artifactChain + name)
	dir := filepath.Join(s.gen.dir, artifactsDir, name)
	if again {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove files of artifact %s: %w", desc.Digest, err)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	manifest, err := images.Manifest(ctx, s.gen.content, desc, nil)
	if err != nil {
		return fmt.Errorf("read manifest %s: %w", desc.Digest, err)
	}
	if err := s.plant(ctx, dir, manifest); err != nil {
		return errors.Join(fmt.Errorf("lay out artifact %s: %w", desc.Digest, err), os.RemoveAll(dir+artifactNew))
	}
	return nil
}

// plant makes a tree under another name and renames it once it is on the disk.
func (s *Store) plant(ctx context.Context, dir string, manifest ocispec.Manifest) error {
	unfinished := dir + artifactNew
	if err := os.RemoveAll(unfinished); err != nil { // of an interrupted attempt
		return err
	}
	tree := filepath.Join(unfinished, artifactTree)
	if err := os.MkdirAll(tree, dirMode); err != nil {
		return err
	}
	if err := os.Chmod(tree, 0o755); err != nil {
		return err
	}
	// An archive can have hard links to what is there already, and change its
	// attributes. Those of a blob are not for it to change.
	link := true
	for _, layer := range manifest.Layers {
		link = link && !isArchive(layer)
	}
	limits := &unpackLimits{max: s.opts.MaxUnpackedSize}
	for _, layer := range manifest.Layers {
		if err := s.plantLayer(ctx, tree, layer, link, limits); err != nil {
			return fmt.Errorf("layer %s: %w", layer.Digest, err)
		}
	}
	var used continuity.Usage
	if !link {
		var err error
		if used, err = continuity.DiskUsage(ctx, tree); err != nil {
			return err
		}
	}
	size, err := json.Marshal(usage{Bytes: uint64(used.Size), Inodes: uint64(used.Inodes)})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(unfinished, artifactSize), size, fileMode); err != nil {
		return err
	}
	if err := syncFileSystem(unfinished); err != nil {
		return err
	}
	if err := os.Rename(unfinished, dir); err != nil {
		return err
	}
	return atomicfile.SyncDirectory(filepath.Dir(dir))
}

// isArchive says whether a layer of an artifact is to be unpacked. ORAS gives
// the type of an image's layer to plain files too, but those have a title.
func isArchive(layer ocispec.Descriptor) bool {
	titled := layer.Annotations[ocispec.AnnotationTitle] != ""
	return images.IsLayerType(layer.MediaType) && (!titled || layer.Annotations[unpackAnnotation] == "true")
}

func (s *Store) plantLayer(ctx context.Context, tree string, layer ocispec.Descriptor, link bool, limits *unpackLimits) error {
	if isArchive(layer) {
		blob, err := s.gen.content.ReaderAt(ctx, layer)
		if err != nil {
			return err
		}
		_, err = unpackLayer(ctx, content.NewReader(blob), unpackTarget{dir: tree}, limits)
		return errors.Join(err, blob.Close())
	}
	if err := limits.add(&limits.files, layer.Size); err != nil {
		return err
	}
	at, err := placeOf(tree, layer)
	if err != nil {
		return err
	}
	if link {
		err = os.Link(s.gen.blobPath(layer.Digest), at)
	} else {
		err = s.copyBlob(ctx, layer, at)
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s %q: another layer has it too: %w",
			ocispec.AnnotationTitle, layer.Annotations[ocispec.AnnotationTitle], errdefs.ErrInvalidArgument)
	}
	return err
}

// placeOf makes the directories of a layer's file and returns its path. Links
// that an archive brought are followed within the tree only.
func placeOf(tree string, layer ocispec.Descriptor) (string, error) {
	title := layer.Annotations[ocispec.AnnotationTitle]
	name := title
	if name == "" {
		name = layer.Digest.Encoded()
	}
	refuse := func(reason string) error {
		return fmt.Errorf("%s %.100q: %s: %w", ocispec.AnnotationTitle, title, reason, errdefs.ErrInvalidArgument)
	}
	switch {
	case !filepath.IsLocal(name) || strings.ContainsRune(name, 0) || filepath.Clean(name) == ".":
		return "", refuse("does not name a file within the artifact")
	case len(name) > maxTitle || slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return len(part) > unix.NAME_MAX }):
		return "", refuse("is too long")
	}
	name = filepath.Clean(name)
	dir, err := continuity.RootPath(tree, filepath.Dir(name))
	if err != nil {
		return "", refuse(err.Error())
	}
	if err := os.MkdirAll(dir, 0o755); errors.Is(err, unix.ENOTDIR) {
		return "", refuse("another file is in the way")
	} else if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(name)), nil
}

func (s *Store) copyBlob(ctx context.Context, layer ocispec.Descriptor, to string) error {
	blob, err := s.gen.content.ReaderAt(ctx, layer)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return errors.Join(err, blob.Close())
	}
	_, err = io.Copy(file, content.NewReader(blob))
	return errors.Join(err, file.Close(), blob.Close())
}

// blobPath is the file of a blob in the content store.
func (g *generation) blobPath(blob digest.Digest) string {
	return filepath.Join(g.dir, "content", "blobs", blob.Algorithm().String(), blob.Encoded())
}

// sweepArtifacts removes the trees that no image, no container and no transfer
// has. What is removed is renamed first, so that a transfer that begins
// meanwhile recreates it.
func (s *Store) sweepArtifacts() error {
	parent := filepath.Join(s.gen.dir, artifactsDir)
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		dead := filepath.Join(parent, entry.Name())
		if !strings.HasPrefix(entry.Name(), ".") {
			var felling error
			if dead, felling = s.fell(parent, entry.Name()); dead == "" {
				err = errors.Join(err, felling)
				continue
			}
		}
		err = errors.Join(err, os.RemoveAll(dead))
	}
	if err != nil {
		return fmt.Errorf("remove unused artifacts: %w", err)
	}
	return nil
}

// fell takes a tree out of its place if it is not in use, and returns where it is
// then; nowhere if it stays.
func (s *Store) fell(parent, entry string) (dead string, err error) {
	name := strings.TrimSuffix(entry, artifactNew)
	chain := artifactChain + strings.Replace(name, "-", ":", 1)
	s.growing.mu.Lock()
	defer s.growing.mu.Unlock()
	// The index comes before the uses: what begins to use an artifact finds it
	// in the index.
	if s.growing.waiting[name] > 0 || entry == name && (s.index.Load().hasChain(chain) || s.uses.held(chain)) {
		return "", nil
	}
	dead = filepath.Join(parent, "."+entry)
	if err := errors.Join(os.RemoveAll(dead), os.Rename(filepath.Join(parent, entry), dead)); err != nil {
		return "", err
	}
	return dead, nil
}

// measureArtifacts sums up what trees take beside their blobs.
func (g *generation) measureArtifacts(sum *usage) error {
	files, err := filepath.Glob(filepath.Join(g.dir, artifactsDir, "[^.]*", artifactSize))
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return err
		}
		var used usage
		if err := json.Unmarshal(data, &used); err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		sum.Bytes += used.Bytes
		sum.Inodes += used.Inodes
	}
	return nil
}

// syncFileSystem writes everything on dir's file system to the disk.
func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}
