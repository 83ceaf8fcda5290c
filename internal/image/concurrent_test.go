package image_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// Pulls of one reference join: every blob is fetched once. One of them may be
// given up without the others noticing.
func TestPullsJoin(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, a := f.push("hello:1", bigger(3))
	slow := a.Layers[0].Digest.String()
	f.proxy.Inject(registry.Fault{Method: http.MethodGet, Path: slow, Rate: 400 << 10})
	impatient, cancel := context.WithCancel(t.Context())
	var pulls sync.WaitGroup
	for range 5 {
		pulls.Go(func() {
			if id, err := f.Pull(t.Context(), ref, image.Auth{}); err != nil || id != a.ID {
				t.Errorf("got %q, %v", id, err)
			}
		})
	}
	pulls.Go(func() {
		if _, err := f.Pull(impatient, ref, image.Auth{}); !errors.Is(err, context.Canceled) {
			t.Errorf("impatient pull: got %v", err)
		}
	})
	eventually(t, "the slow request", func() bool { return f.proxy.Count(http.MethodGet, slow) > 0 })
	cancel()
	pulls.Wait()
	for _, blob := range append([]string{a.ID}, slow, a.Layers[1].Digest.String(), a.Layers[2].Digest.String()) {
		if n := f.proxy.Count(http.MethodGet, blob); n != 1 {
			t.Errorf("%s was fetched %d times", blob, n)
		}
	}
}

// Different images with layers in common fetch and unpack those once, though
// they are pulled at the same time.
func TestPullsShareLayers(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	base := bigger(3)
	var refs []string
	var last *imagefactory.Artifact
	for _, name := range []string{"a:1", "b:1", "c:1", "d:1"} {
		spec := base
		spec.Layers = append([]imagefactory.Layer(nil), base.Layers...)
		spec.Layers = append(spec.Layers, imagefactory.Layer{Files: []imagefactory.File{imagefactory.Regular(name, name)}})
		ref, a := f.push(name, spec)
		refs, last = append(refs, ref), a
	}
	var pulls sync.WaitGroup
	for _, ref := range refs {
		pulls.Go(func() {
			if _, err := f.Pull(t.Context(), ref, image.Auth{}); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	for _, layer := range last.Layers[:3] {
		// Each repository has its own path, so the sum counts.
		if n := f.proxy.Count(http.MethodGet, layer.Digest.String()); n != 1 {
			t.Errorf("%s was fetched %d times", layer.Digest, n)
		}
	}
	unpacked := 0
	for _, path := range leftovers(t, f.root) {
		if strings.Contains(path, "/snapshots/") {
			unpacked++
		}
	}
	if unpacked != 3+len(refs) {
		t.Errorf("unpacked layers: got %d, want %d", unpacked, 3+len(refs))
	}
}

// Layers are fetched side by side, and not more than the option allows.
func TestParallelLayers(t *testing.T) {
	privilege.Root(t)
	const limit = 3
	f := newFixtureWith(t, image.Options{MaxConcurrentDownloads: limit}, registry.Options{})
	ref, a := f.push("hello:1", bigger(6))
	layers := func() (n int) {
		for _, layer := range a.Layers {
			n += f.proxy.Count(http.MethodGet, layer.Digest.String())
		}
		return n
	}
	var stalled []registry.Fault
	for _, layer := range a.Layers {
		stalled = append(stalled, registry.Fault{Path: layer.Digest.String(), Stall: 10})
	}
	f.proxy.Inject(stalled...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := f.Pull(ctx, ref, image.Auth{})
		ended <- err
	}()
	eventually(t, "three layers under way", func() bool { return layers() == limit })
	progress, err := f.WatchPull(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	waiting := 0
	for _, layer := range (<-progress).Layers {
		if layer.State == image.LayerWaiting {
			waiting++
		}
	}
	if waiting != len(a.Layers)-limit || layers() != limit {
		t.Errorf("got %d layers waiting and %d under way, want %d and %d", waiting, layers(), len(a.Layers)-limit, limit)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	f.nothingLeft()
}

// A watcher that begins before the pull sees it to its end, with the size of
// every layer. Watching an image without a pull is not found.
func TestWatchPull(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, a := f.push("hello:1", bigger(3))
	f.proxy.Inject(registry.Fault{Path: a.Layers[1].Digest.String(), Rate: 400 << 10})
	var last image.Progress
	var watcher sync.WaitGroup
	watcher.Go(func() {
		updates, err := f.WatchPull(t.Context(), ref)
		if err != nil {
			t.Error(err)
			return
		}
		for last = range updates {
			for _, layer := range last.Layers {
				if layer.Done > layer.Total {
					t.Errorf("layer %s: %d of %d bytes", layer.Digest, layer.Done, layer.Total)
				}
			}
		}
	})
	f.pull(ref)
	watcher.Wait()
	if last.Stage != image.StageDone || len(last.Layers) != 3 || last.Age <= 0 {
		t.Errorf("last: got %+v", last)
	}
	for i, layer := range last.Layers {
		if layer.State != image.LayerDone || layer.Done != a.Layers[i].Size || layer.Total != layer.Done {
			t.Errorf("layer %d: got %+v, want all of %d bytes", i, layer, a.Layers[i].Size)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := f.WatchPull(ctx, ref); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("watch without a pull: got %v", err)
	}
	if _, err := f.WatchPull(t.Context(), "Not A Reference"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("watch of a malformed reference: got %v", err)
	}
}

// When Remove returns the image is gone for everybody, however many remove it
// at the same time. All but one find nothing, which is no other error.
func TestConcurrentRemoves(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hello:1", bigger(3))
	id := f.pull(ref)
	var removed sync.WaitGroup
	for range 5 {
		removed.Go(func() {
			if err := f.Remove(t.Context(), id); err != nil && !errdefs.IsNotFound(err) {
				t.Error(err)
			}
			if _, err := f.Resolve(ref); !errdefs.IsNotFound(err) {
				t.Errorf("resolve after remove: got %v", err)
			}
			if len(f.List()) != 0 {
				t.Error("the image is still listed")
			}
		})
	}
	removed.Wait()
	// Unused bytes are freed without being asked for.
	eventually(t, "an empty store", func() bool { return len(leftovers(t, f.root)) == 0 })
	info, err := f.FsInfo(t.Context())
	if err != nil || info.UsedBytes != 0 || info.Inodes != 0 {
		t.Errorf("usage: got %+v, %v", info, err)
	}
}

// An image that was just removed waits for its collection. Pulling it at that
// moment works, again and again.
func TestPullDuringCollection(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	for i := range 20 { // the more there is, the longer a collection takes
		other, _ := f.push(fmt.Sprintf("other%d:1", i), bigger(3))
		f.pull(other)
	}
	ref, a := f.push("again:1", bigger(2))
	for round := range 60 {
		if id, err := f.Pull(t.Context(), ref, image.Auth{}); err != nil || id != a.ID {
			t.Fatalf("pull %d: got %q, %v", round, id, err)
		}
		if err := f.Remove(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
}

// Pulls, removals, collections and containers of two images that share layers,
// all at once: every pulled image that was not removed is usable.
func TestPullsAndRemovesAtOnce(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	one, a := f.push("one:1", bigger(3))
	spec := bigger(3)
	spec.Config.Cmd = []string{"/other"}
	spec.Layers[2] = hello().Layers[0]
	two, b := f.push("two:1", spec)
	var work sync.WaitGroup
	for worker, ref := range []string{one, two, one, two} {
		work.Go(func() {
			for round := range 8 {
				id, err := f.Pull(t.Context(), ref, image.Auth{})
				if err != nil {
					t.Errorf("pull: %v", err)
					return
				}
				key := ref[len(ref)-5:len(ref)-2] + string(rune('a'+worker)) + string(rune('a'+round))
				if err := f.PrepareRootfs(t.Context(), key, id); err == nil {
					f.checkRootfs(key)
				} else if !errdefs.IsNotFound(err) {
					t.Errorf("prepare: %v", err)
				}
				if err := f.Remove(t.Context(), id); err != nil && !errdefs.IsNotFound(err) {
					t.Errorf("remove: %v", err)
				}
				if err := f.GC(t.Context()); err != nil {
					t.Errorf("collect: %v", err)
				}
			}
		})
	}
	work.Wait()
	if err := f.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.nothingLeft()
	for ref, want := range map[string]string{one: a.ID, two: b.ID} {
		if id := f.pull(ref); id != want {
			t.Errorf("got %s, want %s", id, want)
		}
	}
}

// checkRootfs mounts a writable layer, looks at it and removes it.
func (f *fixture) checkRootfs(key string) {
	target := f.root + "/mnt-" + key
	if err := f.MountRootfs(f.t.Context(), key, target, false, nil); err != nil {
		f.t.Errorf("mount: %v", err)
	}
	if got := tree(f.t, target); !strings.Contains(got, "/file-a -rw-r--r-- ") {
		f.t.Errorf("content of %s: got %.200q", key, got)
	}
	if err := errors.Join(f.UnmountRootfs(f.t.Context(), target), f.RemoveRootfs(f.t.Context(), key)); err != nil {
		f.t.Error(err)
	}
}
