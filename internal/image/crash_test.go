package image_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/isolation"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// childRoot and childRef make this test binary pull an image instead of
// running tests, so that it can be killed.
const (
	childRoot = "BERTH_IMAGE_TEST_ROOT"
	childRef  = "BERTH_IMAGE_TEST_REF"
)

func TestMain(m *testing.M) {
	root, ref := os.Getenv(childRoot), os.Getenv(childRef)
	if root == "" {
		os.Exit(isolation.Main(m))
	}
	if err := pullAsChild(root, ref); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func pullAsChild(root, ref string) error {
	s, err := image.Open(context.Background(), image.Options{Root: root})
	if err != nil {
		return err
	}
	if _, err := s.Pull(context.Background(), ref, image.Auth{}); err != nil {
		return err
	}
	return s.Close()
}

// startChild starts a pull in a process of its own.
func startChild(t *testing.T, root, ref string) *exec.Cmd {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childRoot+"="+root, childRef+"="+ref)
	child.Stderr = t.Output()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	return child
}

// A pull whose process is killed, wherever it was, leaves nothing that the
// next start does not remove; images that were there are not harmed, and the
// pull can be repeated.
func TestKilledPull(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	reg := registry.Run(t, registry.Options{})
	proxy := registry.RunProxy(t, reg.Host)
	a := build(t, bigger(4))
	imagefactory.MustPush(t, reg.Host, "big:1", a)
	kept := build(t, hello())
	imagefactory.MustPush(t, reg.Host, "kept:1", kept)
	ref, keptRef := proxy.Host+"/big:1", proxy.Host+"/kept:1"
	type point struct{ name, path string }
	points := []point{{"manifest", a.Descriptor.Digest.String()}, {"configuration", a.ID}}
	for i, layer := range a.Layers {
		points = append(points, point{fmt.Sprintf("layer-%d", i), layer.Digest.String()})
	}
	for _, p := range points {
		t.Run(p.name, func(t *testing.T) {
			root := ramDisk(t, "1g")
			proxy.Inject()
			first := startChild(t, root, keptRef)
			if err := first.Wait(); err != nil {
				t.Fatal(err)
			}
			before := leftovers(t, root)
			proxy.Inject(registry.Fault{Method: http.MethodGet, Path: p.path, Stall: 20})
			asked := proxy.Count(http.MethodGet, p.path)
			child := startChild(t, root, ref)
			eventually(t, "the request that stalls", func() bool { return proxy.Count(http.MethodGet, p.path) > asked })
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := child.Wait(); err == nil {
				t.Fatal("the pull ended before it was killed")
			}
			proxy.Inject()
			s := open(t, image.Options{Root: root})
			if after := leftovers(t, root); strings.Join(after, "\n") != strings.Join(before, "\n") {
				t.Errorf("after the next start there is\n%s\nwant\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
			if _, err := s.Resolve(keptRef); err != nil {
				t.Error(err)
			}
			if _, err := s.Resolve(ref); !errdefs.IsNotFound(err) {
				t.Errorf("killed pull: got %v, want not found", err)
			}
			if id, err := s.Pull(t.Context(), ref, image.Auth{}); err != nil || id != a.ID {
				t.Errorf("repeated pull: got %q, %v", id, err)
			}
		})
	}
}

// The same at many arbitrary instants: the pull is killed after each
// of its steps in turn, counted in files that the store has made.
func TestKilledPullAnywhere(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	reg := registry.Run(t, registry.Options{})
	a := build(t, bigger(4))
	ref := imagefactory.MustPush(t, reg.Host, "big:1", a)
	for files := 1; files <= 15; files += 2 {
		t.Run(fmt.Sprintf("after-%d-files", files), func(t *testing.T) {
			root := ramDisk(t, "1g")
			child := startChild(t, root, ref)
			ended := make(chan error, 1)
			go func() { ended <- child.Wait() }()
			eventually(t, "the child's files or end", func() bool {
				return len(leftovers(t, root)) >= files || len(ended) > 0
			})
			if err := child.Process.Kill(); err != nil && len(ended) == 0 {
				t.Logf("the child ended by itself: %v", err)
			}
			if err := <-ended; err == nil {
				t.Log("the pull was over before it was killed")
			}
			s := open(t, image.Options{Root: root})
			if _, err := s.Resolve(ref); err != nil {
				if found := leftovers(t, root); len(found) > 0 {
					t.Errorf("the image is not there but %s", strings.Join(found, "\n"))
				}
			}
			if id, err := s.Pull(t.Context(), ref, image.Auth{}); err != nil || id != a.ID {
				t.Errorf("repeated pull: got %q, %v", id, err)
			}
		})
	}
}

// A full disk is named as such and gets nothing stuck: what the pull wrote is
// gone, the other image works, and with room the pull succeeds.
func TestFullDisk(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	disk := ramDisk(t, "12m")
	f := newFixtureWith(t, image.Options{Root: filepath.Join(disk, "images")}, registry.Options{})
	kept, _ := f.push("kept:1", hello())
	keptID := f.pull(kept)
	huge, a := f.push("huge:1", imagefactory.Spec{Layers: []imagefactory.Layer{
		{Files: []imagefactory.File{imagefactory.Regular("a", noise(1<<20))}},
		{Files: []imagefactory.File{imagefactory.Regular("b", noise(6<<20))}},
		{Files: []imagefactory.File{imagefactory.Regular("c", noise(6<<20))}},
	}})
	before := leftovers(t, f.root)
	for range 3 {
		_, err := f.Pull(t.Context(), huge, image.Auth{})
		if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "disk is full") {
			t.Errorf("got %v, want that the disk is full", err)
		}
		if after := leftovers(t, f.root); strings.Join(after, "\n") != strings.Join(before, "\n") {
			t.Errorf("after the failed pull there is\n%s\nwant\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	}
	if got := tree(t, f.mounted(keptID)); got != "/hello -rw-r--r-- world" {
		t.Errorf("the other image: got %s", got)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if id := f.pull(huge); id != a.ID {
		t.Errorf("with room: got %s, want %s", id, a.ID)
	}
}

// With not a single free block the store still opens, and an image can be
// removed, which is how room is made.
func TestRemoveOnFullDisk(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	disk := ramDisk(t, "16m")
	f := newFixtureWith(t, image.Options{Root: filepath.Join(disk, "images")}, registry.Options{})
	ref, _ := f.push("big:1", bigger(3))
	f.pull(ref)
	fill(t, filepath.Join(disk, "filler"))
	if err := f.PrepareRootfs(t.Context(), "some", ref); err == nil {
		// An empty directory may fit where nothing else does.
		if err := f.RemoveRootfs(t.Context(), "some"); err != nil {
			t.Error(err)
		}
	} else if !errdefs.IsResourceExhausted(err) {
		t.Errorf("prepare root filesystem: got %v, want resource exhausted", err)
	}
	if err := f.Store.Close(); err != nil {
		t.Fatal(err)
	}
	f.Store = open(t, image.Options{Root: f.root})
	if err := f.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if err := f.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.nothingLeft()
}

// fill writes until nothing fits any more.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for {
			if n, err := file.Write(make([]byte, size)); err != nil || n < size {
				break
			}
		}
	}
}
