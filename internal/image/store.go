// Package image pulls, keeps, unpacks and collects container images, and makes
// the root filesystems of containers from them.
//
// # What is where
//
//	<root>/names.json              every name with the manifest that it stands for
//	<root>/store-<n>/content/      blobs, as they came from the registry
//	<root>/store-<n>/meta.db       what refers to what (containerd's metadata on bbolt)
//	<root>/store-<n>/metadata.db   the layers (containerd's overlay snapshotter)
//	<root>/store-<n>/snapshots/    the unpacked layers
//	<root>/store-<n>/artifacts/    the files of artifacts, see artifact.go
//	<root>/rootfs/<key>/           writable layers of containers, with the volumes of their images, see volumedir.go
//	<root>/volumes/<key>           which image a volume is, see volume.go
//	<root>/session                 there while the store is open, see session.go
//	<root>/reserve                 blocks to give back when the disk is full
//
// Images survive a power loss: blobs are synced before they get their name and
// unpacked layers before their snapshot is committed. Should a database not be
// readable all the same, a new store-<n+1> is begun, and the images named in
// names.json are made again from the blobs of the old one. Nothing is wiped.
//
// Writable layers belong to containers, which do not survive a power loss.
// They are plain directories, outside the databases, so that starting a
// container syncs nothing.
//
// # Reading and writing
//
// Resolve, List and FsInfo answer from an immutable index in memory and never
// wait. The index holds only what is usable: manifest, configuration, every
// layer's blob and its snapshot are there. Store.mu orders the changes of
// names; it may be held across a sync. Store.uses.mu guards which layers
// containers use; it is a leaf and never held across I/O.
package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// defaultDownloads is how many layers are fetched and unpacked at a time.
	defaultDownloads = 4
	// defaultStall is how long a registry may send nothing.
	defaultStall = 30 * time.Second
	// lockWait is how long Open waits for another daemon to let go of the
	// store; a daemon that is being replaced needs a moment.
	lockWait = 5 * time.Second
	dirMode  = 0o700
	fileMode = 0o600
)

// Options say where the store is and how it pulls.
type Options struct {
	// Root is the directory that the store owns.
	Root string
	// RegistryConfigDir is a containerd certs.d tree of hosts.toml files; it
	// need not exist.
	RegistryConfigDir string
	// RegistryConfigDirs are more such trees, for registries that are not in the ones before.
	RegistryConfigDirs []string
	// AuthFile has accounts in the form of Docker's config.json, for pulls without one. It need not
	// exist.
	AuthFile string
	// MirrorCredentials shows the account of a pull to the mirrors of its registry too.
	MirrorCredentials bool
	// MaxConcurrentDownloads bounds how many layers, of all pulls together, are
	// fetched and unpacked at a time (0: 4). See slots for what goes beyond.
	MaxConcurrentDownloads int
	// Pinned are references of images which the kubelet must not collect; * stands for any characters.
	Pinned []string
	// VerifierDir has programs that decide whether an image may be pulled; empty
	// means no verifiers.
	VerifierDir string
	// StallTimeout is how long a registry may send nothing (0: 30 s), and twice that before the first
	// byte of an answer. Then the next host is asked; without one the pull ends.
	StallTimeout time.Duration
	// MinBytesPerSecond is what a registry must send on average in each StallTimeout (0: anything).
	MinBytesPerSecond int
	// MaxUnpackedSize is how many bytes the layers of one image may unpack to (0: no limit).
	MaxUnpackedSize int64
	// Log receives errors of background work.
	Log *slog.Logger
}

// Store keeps the images of a node. Its methods may be called at the same
// time from anywhere.
type Store struct {
	opts     Options
	log      *slog.Logger
	node     ocispec.Platform
	platform platforms.MatchComparer // what the node can run
	pinned   pins

	gen     *generation
	reserve *reserve
	slots   *slots      // layers being fetched and unpacked
	work    *sharedWork // blobs and chains being made by pulls
	locks   *keyedLocks // images being verified, artifacts being made

	index  atomic.Pointer[index]
	usage  atomic.Pointer[usage]
	uses   uses
	doubts doubts
	swept  sync.Mutex // one collection at a time

	// mu orders changes of names. It guards names and loaded.
	mu     sync.Mutex
	names  names
	loaded map[string]*loaded // by digest of the manifest or index

	flights flights
	growing growing

	// ctx ends all background work: Close cancels it and waits for tasks.
	ctx     context.Context
	cancel  context.CancelFunc
	tasks   sync.WaitGroup
	collect chan struct{}
	closing sync.Once
	closed  error // what Close answers
}

// Open opens the store in opts.Root, which it makes if need be, removes what
// interrupted pulls left behind and drops what is not usable. Only one process
// can have a store open. The caller closes it.
func Open(ctx context.Context, opts Options) (_ *Store, err error) {
	if err := quietGlobalLog(); err != nil {
		return nil, fmt.Errorf("set log level of image libraries: %w", err)
	}
	s, err := newStore(opts)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{opts.Root, filepath.Join(opts.Root, rootfsDir), filepath.Join(opts.Root, volumesDir), filepath.Join(opts.Root, emptyDir)} {
		if err := os.MkdirAll(dir, dirMode); err != nil {
			return nil, fmt.Errorf("make image store: %w", err)
		}
	}
	gen, err := openGeneration(ctx, opts.Root, s.log)
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", opts.Root, err)
	}
	s.gen = gen
	defer func() {
		if err != nil {
			s.cancel()
			err = errors.Join(err, gen.close())
		}
	}()
	s.reserve = newReserve(filepath.Join(opts.Root, "reserve"), s.log)
	var unclean bool
	err = s.reserve.room(func() (err error) {
		unclean, err = s.beginSession()
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := s.recoverUses(unclean); err != nil {
		return nil, err
	}
	if err := s.reserve.room(func() error { return s.recoverNames(ctx) }); err != nil {
		return nil, err
	}
	if err := s.reserve.room(func() error { return s.recoverContent(ctx) }); err != nil {
		return nil, err
	}
	lost, err := s.lostStores()
	if err != nil {
		return nil, err
	}
	s.tasks.Go(s.collector)
	if unclean {
		s.doubts.ids = map[string]bool{}
		for _, image := range s.List() {
			s.doubts.ids[image.ID] = true
		}
		s.tasks.Go(s.verifyAll)
	}
	for _, dir := range lost {
		s.tasks.Go(func() { s.restore(dir) })
	}
	return s, nil
}

func newStore(opts Options) (*Store, error) {
	if !filepath.IsAbs(opts.Root) {
		return nil, fmt.Errorf("open image store: root %q is not an absolute path: %w", opts.Root, errdefs.ErrInvalidArgument)
	}
	if strings.ContainsAny(opts.Root, ":,\\") {
		return nil, fmt.Errorf("open image store: root %q has a character that overlay mounts give a meaning (: , \\): %w",
			opts.Root, errdefs.ErrInvalidArgument)
	}
	if opts.MaxConcurrentDownloads < 0 {
		return nil, fmt.Errorf("open image store: max_concurrent_downloads %d is negative: %w",
			opts.MaxConcurrentDownloads, errdefs.ErrInvalidArgument)
	}
	if opts.MaxConcurrentDownloads == 0 {
		opts.MaxConcurrentDownloads = defaultDownloads
	}
	if opts.StallTimeout <= 0 {
		opts.StallTimeout = defaultStall
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	node, err := nodePlatform()
	if err != nil {
		return nil, fmt.Errorf("find the platform of this node: %w", err)
	}
	s := &Store{
		opts: opts, log: opts.Log, node: node, platform: platforms.Only(node),
		slots: newSlots(opts.MaxConcurrentDownloads), work: newSharedWork(), locks: newKeyedLocks(),
		loaded: map[string]*loaded{}, collect: make(chan struct{}, 1),
	}
	if s.pinned, err = newPins(opts.Pinned); err != nil {
		return nil, fmt.Errorf("read pinned images: %w", err)
	}
	s.flights.init()
	s.uses.init()
	s.index.Store(newIndex(nil))
	s.usage.Store(&usage{})
	s.ctx, s.cancel = context.WithCancel(withLog(inNamespace(context.Background()), s.log))
	return s, nil
}

// Close ends every pull and the background work, and lets go of the store.
// Mounted root filesystems stay mounted. It may be called again.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.cancel()
		s.flights.wait()
		s.tasks.Wait()
		s.closed = errors.Join(s.endSession(), s.gen.close())
	})
	if s.closed != nil {
		return fmt.Errorf("close image store %s: %w", s.opts.Root, s.closed)
	}
	return nil
}

// recoverNames reads which names there are and drops those whose images cannot
// be used any more, so that the next pull repairs them.
func (s *Store) recoverNames(ctx context.Context) error {
	ctx = withLog(inNamespace(ctx), s.log)
	recorded, err := s.gen.listNames(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = names{}
	for name, target := range recorded {
		image, err := s.load(ctx, target)
		if err != nil {
			s.log.Warn("image is not usable and has to be pulled again", "image", name, "error", err)
			if err := s.gen.images.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("forget broken image %s: %w", name, err)
			}
			continue
		}
		s.names[name] = target
		s.loaded[target.Digest.String()] = image
	}
	if err := s.names.write(s.namesPath()); err != nil {
		return err
	}
	s.publish()
	return nil
}

// recoverContent removes what killed pulls left.
func (s *Store) recoverContent(ctx context.Context) error {
	ctx = withLog(inNamespace(ctx), s.log)
	if err := s.gen.sweep(ctx, s.uses.held); err != nil {
		return err
	}
	return s.GC(ctx)
}

func (s *Store) namesPath() string { return filepath.Join(s.opts.Root, "names.json") }
