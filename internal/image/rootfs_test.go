package image_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
)

// A root filesystem shows the image, keeps what is written into it over a
// remount, and each step can be repeated.
func TestRootfs(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hello:1", hello())
	id := f.pull(ref)
	target := filepath.Join(f.root, "target")
	for range 2 {
		if err := f.PrepareRootfs(t.Context(), "c1", id); err != nil {
			t.Fatal(err)
		}
		if err := f.MountRootfs(t.Context(), "c1", target, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := mountsAt(t, target); n != 1 {
		t.Errorf("mounted %d times", n)
	}
	if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("root directory: got %v, %v, want mode 0755", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(target, "written"), []byte("by the container"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.UnmountRootfs(t.Context(), target); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.MountRootfs(t.Context(), "c1", target, true, nil); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, target); got != "/hello -rw-r--r-- world\n/written -rw-r--r-- by the container" {
		t.Errorf("content: got\n%s", got)
	}
	if err := os.Remove(filepath.Join(target, "hello")); err == nil {
		t.Error("a read-only root filesystem was written to")
	}
	bytes, inodes, err := f.RootfsUsage(t.Context(), "c1")
	if err != nil || bytes == 0 || inodes < 2 {
		t.Errorf("usage: got %d bytes, %d inodes, %v", bytes, inodes, err)
	}
	if err := f.UnmountRootfs(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.RemoveRootfs(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
	}
	if keys, err := f.RootfsKeys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("keys: got %v, %v, want none", keys, err)
	}
}

func mountsAt(t *testing.T, target string) int {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if !strings.Contains(m.VFSOptions, "volatile") {
			t.Errorf("mounted with %s, want volatile", m.VFSOptions)
		}
	}
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != target, false })
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// What is asked for wrongly is refused, and changes nothing.
func TestRootfsErrors(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	one, _ := f.push("one:1", hello())
	two, _ := f.push("two:1", bigger(1))
	id, other := f.pull(one), f.pull(two)
	target := filepath.Join(f.root, "target")
	for _, key := range []string{"", ".", "..", "a/b", "../a", strings.Repeat("a", 300)} {
		for what, err := range map[string]error{
			"prepare": f.PrepareRootfs(t.Context(), key, id), "mount": f.MountRootfs(t.Context(), key, target, false, nil),
			"remove": f.RemoveRootfs(t.Context(), key),
		} {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s with key %.10q: got %v, want invalid argument", what, key, err)
			}
		}
	}
	if err := f.PrepareRootfs(t.Context(), "c1", "sha256:"+strings.Repeat("0", 64)); !errdefs.IsNotFound(err) {
		t.Errorf("unknown image: got %v, want not found", err)
	}
	if err := f.MountRootfs(t.Context(), "c1", target, false, nil); !errdefs.IsNotFound(err) {
		t.Errorf("unknown key: got %v, want not found", err)
	}
	if err := f.PrepareRootfs(t.Context(), "c1", id); err != nil {
		t.Fatal(err)
	}
	if err := f.PrepareRootfs(t.Context(), "c1", other); !errdefs.IsAlreadyExists(err) {
		t.Errorf("key in use: got %v, want already exists", err)
	}
}

// Removing an image leaves the containers that run from it alone, over a
// restart too. When the last one is gone so are the layers.
func TestRemoveImageInUse(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hello:1", bigger(2))
	id := f.pull(ref)
	target := filepath.Join(f.root, "target")
	for _, key := range []string{"c1", "c2"} {
		if err := f.PrepareRootfs(t.Context(), key, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.MountRootfs(t.Context(), "c1", target, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Remove(t.Context(), ref), f.GC(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := f.Store.Close(); err != nil {
		t.Fatal(err)
	}
	f.Store = open(t, image.Options{Root: f.root})
	if got := tree(t, target); !strings.Contains(got, "/file-a") || !strings.Contains(got, "/file-b") {
		t.Errorf("mounted root filesystem: got %.100q", got)
	}
	mountAndCompare(t, f.Store, f.root, "c2", "/file-b")
	if err := f.PrepareRootfs(t.Context(), "c3", id); !errdefs.IsNotFound(err) {
		t.Errorf("new root filesystem of a removed image: got %v, want not found", err)
	}
	if err := errors.Join(f.UnmountRootfs(t.Context(), target), f.RemoveRootfs(t.Context(), "c1")); err != nil {
		t.Fatal(err)
	}
	if err := f.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	mountAndCompare(t, f.Store, f.root, "c2", "/file-b")
	if err := f.RemoveRootfs(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an empty store", func() bool { return len(leftovers(t, f.root)) == 0 })
}

// A root filesystem whose making was interrupted is listed, so that it is
// found; it cannot be mounted; and it can be made again or removed.
func TestInterruptedRootfs(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hello:1", hello())
	id := f.pull(ref)
	for _, key := range []string{"torn", "empty"} {
		if err := f.PrepareRootfs(t.Context(), key, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.root, "rootfs/torn/rootfs.json"), []byte(`{"version":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(f.root, "rootfs/empty/rootfs.json")); err != nil {
		t.Fatal(err)
	}
	f.Store = open(t, image.Options{Root: f.root})
	if keys, err := f.RootfsKeys(t.Context()); err != nil || len(keys) != 2 {
		t.Errorf("keys: got %v, %v, want both", keys, err)
	}
	if err := f.MountRootfs(t.Context(), "torn", filepath.Join(f.root, "target"), false, nil); !errdefs.IsNotFound(err) {
		t.Errorf("mount: got %v, want not found", err)
	}
	if err := f.PrepareRootfs(t.Context(), "torn", id); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"torn", "empty"} {
		if err := f.RemoveRootfs(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
}

// What is unpacked really runs: a shell of the busybox image, pulled out of an
// index with decoys, in its root filesystem.
func TestBusyboxRuns(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	a, err := imagefactory.BusyboxWith(imagefactory.Spec{Layers: []imagefactory.Layer{
		{Files: []imagefactory.File{imagefactory.Regular("etc/motd", "hello from above")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	index, err := imagefactory.WithDecoys(a)
	if err != nil {
		t.Fatal(err)
	}
	imagefactory.MustPush(t, f.reg.Host, "busybox:1", index)
	target := f.mounted(f.pull(f.proxy.Host + "/busybox:1"))
	shell := exec.CommandContext(t.Context(), "/bin/sh", "-c", "cat /etc/motd; echo; id -un; stat -c %a /tmp /root; ls /decoy")
	shell.SysProcAttr = &syscall.SysProcAttr{Chroot: target}
	shell.Dir, shell.Env = "/", []string{"PATH=/bin"}
	out, err := shell.CombinedOutput()
	want := "hello from above\nroot\n1777\n700\nls: /decoy: No such file or directory\n"
	if string(out) != want || err == nil {
		t.Errorf("got %q and %v, want %q and that there is no decoy", out, err, want)
	}
}
