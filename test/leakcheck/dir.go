package leakcheck

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Dir makes a directory for t whose path is short enough to hold unix sockets (the kernel allows 107 bytes), and removes
// it when t ends. A mount that is still below it fails the test, and is detached before anything is deleted, so that
// the removal never reaches through it. Anything whose name contains the directory's name belongs to the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatalf("make a directory for the test: %v", err)
	}
	Mark(dir, filepath.Base(dir))
	t.Cleanup(func() {
		if !unmountBeneath(t, dir) {
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the directory of the test: %v", err)
		}
	})
	return dir
}

// unmountBeneath reports and detaches what is mounted beneath dir, deepest first. It returns whether dir is free of mounts.
func unmountBeneath(t testing.TB, dir string) bool {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Errorf("list mounts beneath %s: %v", dir, err)
		return false
	}
	slices.SortFunc(mounts, func(a, b *mountinfo.Info) int {
		return strings.Count(b.Mountpoint, "/") - strings.Count(a.Mountpoint, "/")
	})
	free := true
	for _, m := range mounts {
		t.Errorf("the test leaves a mount behind: %s on %s", m.FSType, m.Mountpoint)
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			t.Errorf("unmount %s: %v", m.Mountpoint, err)
			free = false
		}
	}
	return free
}
