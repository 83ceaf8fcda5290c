package image_test

import (
	"archive/tar"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/registry"
)

// testTimeout bounds every wait of these tests.
const testTimeout = 30 * time.Second

// fixture is a store with a registry behind a proxy.
type fixture struct {
	*image.Store
	root  string
	reg   *registry.Registry
	proxy *registry.Proxy
	t     *testing.T
}

func newFixture(t *testing.T) *fixture { return newFixtureWith(t, image.Options{}, registry.Options{}) }

// newFixtureWith makes a store in opts.Root, if it is given; then the caller
// begins the leak check.
func newFixtureWith(t *testing.T, opts image.Options, reg registry.Options) *fixture {
	t.Helper()
	if opts.Root == "" {
		leakcheck.Check(t)
		opts.Root = ramDisk(t, "1g")
	}
	f := &fixture{root: opts.Root, t: t, reg: registry.Run(t, reg)}
	f.proxy = registry.RunProxy(t, f.reg.Host)
	f.Store = open(t, opts)
	return f
}

// ramDisk mounts a file system in memory until the end of the test. Most tests
// keep their store on one: on a disk they would mostly wait for each other's
// syncs.
func ramDisk(t *testing.T, size string) string {
	t.Helper()
	dir := leakcheck.Dir(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatalf("mount a file system in memory: %v", err)
	}
	t.Cleanup(func() {
		eventually(t, "the file system in memory to be unmounted", func() bool {
			// containerd 2.4.2 leaves a file to its finalizer when it finds no room
			// to try fsverity on.
			runtime.GC()
			return unix.Unmount(dir, 0) == nil
		})
	})
	return dir
}

// open opens a store until the end of the test.
func open(t *testing.T, opts image.Options) *image.Store {
	t.Helper()
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := image.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// push builds an image and pushes it. The returned reference goes through the
// proxy.
func (f *fixture) push(name string, spec imagefactory.Spec) (string, *imagefactory.Artifact) {
	f.t.Helper()
	a := build(f.t, spec)
	imagefactory.MustPush(f.t, f.reg.Host, name, a)
	return f.proxy.Host + "/" + name, a
}

func build(t *testing.T, spec imagefactory.Spec) *imagefactory.Artifact {
	t.Helper()
	a, err := imagefactory.Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// pull pulls without an account.
func (f *fixture) pull(ref string) string {
	f.t.Helper()
	id, err := f.Pull(f.t.Context(), ref, image.Auth{})
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

// resolve resolves what must be there.
func (f *fixture) resolve(ref string) *image.Image {
	f.t.Helper()
	found, err := f.Resolve(ref)
	if err != nil {
		f.t.Fatal(err)
	}
	return found
}

// mounted mounts an image as a container would have it until the end of the
// test.
func (f *fixture) mounted(id string) string {
	f.t.Helper()
	key := strings.ReplaceAll(f.t.Name(), "/", "_") + "-" + id[len(id)-8:]
	target := filepath.Join(f.root, "mnt-"+key)
	if err := f.PrepareRootfs(f.t.Context(), key, id); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		// The test's own context has ended by now.
		err := errors.Join(f.UnmountRootfs(f.t.Context(), target), f.RemoveRootfs(f.t.Context(), key), os.Remove(target))
		if err != nil {
			f.t.Error(err)
		}
	})
	if err := f.MountRootfs(f.t.Context(), key, target, false, nil); err != nil {
		f.t.Fatal(err)
	}
	return target
}

// leftovers lists blobs, half written blobs, unpacked layers and writable
// layers that the store has on disk.
func leftovers(t *testing.T, root string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{
		"store-*/content/blobs/*/*", "store-*/content/ingest/*", "store-*/snapshots/*", "rootfs/*", "*.new",
	} {
		matches, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, matches...)
	}
	return found
}

// nothingLeft fails the test if the store has anything.
func (f *fixture) nothingLeft() {
	f.t.Helper()
	if found := leftovers(f.t, f.root); len(found) > 0 {
		f.t.Errorf("the store should be empty but has %d files: %s", len(found), strings.Join(found, "\n"))
	}
	if list := f.List(); len(list) > 0 {
		f.t.Errorf("the store should list no image but lists %d", len(list))
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testTimeout); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for: %s", testTimeout, what)
		}
	}
}

// tree describes every file beneath a directory, one line each.
func tree(t *testing.T, root string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		line := strings.TrimPrefix(path, root) + " " + info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += " " + string(data)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// hello is the smallest image with something in it.
func hello() imagefactory.Spec {
	return imagefactory.Spec{
		Config: imagefactory.MinimalConfig("/hello"),
		Layers: []imagefactory.Layer{{Files: []imagefactory.File{imagefactory.Regular("hello", "world")}}},
	}
}

func directory(path string, mode fs.FileMode, uid int) imagefactory.File {
	return imagefactory.File{Path: path, Kind: tar.TypeDir, Mode: mode, UID: uid, GID: uid}
}
