// Package disk makes file systems for tests whose writes can be made to hang.
package disk

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a mounted file system.
type Disk struct {
	// Dir is where it is mounted.
	Dir string

	t      testing.TB
	frozen bool
}

// New mounts a new file system until the test ends.
func New(t testing.TB) *Disk {
	t.Helper()
	d := &Disk{t: t, Dir: t.TempDir()}
	image := filepath.Join(t.TempDir(), "image")
	for _, args := range [][]string{
		{"truncate", "-s", "512M", image},
		{"mkfs.ext4", "-q", "-F", image},
		{"mount", "-o", "loop", image, d.Dir}, // the loop device goes with the mount
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.Dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", d.Dir, err)
		}
	})
	return d
}

// Requests of ioctl(2), from linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Freeze makes writes hang until thaw is called, at the latest until the test ends.
func (d *Disk) Freeze() (thaw func()) {
	d.t.Helper()
	d.call(fiFreeze)
	thaw = func() {
		d.t.Helper()
		if d.frozen {
			d.call(fiThaw)
		}
	}
	d.t.Cleanup(thaw)
	return thaw
}

func (d *Disk) call(request uint) {
	d.t.Helper()
	dir, err := os.Open(d.Dir)
	if err != nil {
		d.t.Fatal(err)
	}
	defer dir.Close() //nolint:errcheck // opened for reading only
	if err := unix.IoctlSetInt(int(dir.Fd()), request, 0); err != nil {
		d.t.Fatalf("ioctl %#x on %s: %v", request, d.Dir, err)
	}
	d.frozen = request == fiFreeze
}

// Awaited returns nil if a thread of the process waits for a disk.
func Awaited(pid int) error {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return err
	}
	for _, path := range paths {
		if stat, err := os.ReadFile(path); err == nil && strings.Contains(string(stat), ") D ") {
			return nil
		}
	}
	return fmt.Errorf("none of the %d threads of process %d waits for a disk", len(paths), pid)
}
