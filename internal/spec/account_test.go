package spec

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestAccountFilesAreLookedAtFirst has inotify report every open of a device, FIFO or directory in the place of /etc/passwd.
func TestAccountFilesAreLookedAtFirst(t *testing.T) {
	privilege.Root(t)
	for name, plant := range map[string]func(path string) error{
		"device":    func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
		"FIFO":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			rootfs := t.TempDir()
			file := filepath.Join(rootfs, "etc/planted")
			err := os.Mkdir(filepath.Dir(file), 0o755)
			if err := errors.Join(err, plant(file), os.Symlink("planted", filepath.Join(rootfs, "etc/passwd"))); err != nil {
				t.Fatal(err)
			}
			watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Close(watch); err != nil {
					t.Error(err)
				}
			}()
			if _, err := unix.InotifyAddWatch(watch, file, unix.IN_OPEN); err != nil {
				t.Fatal(err)
			}
			if _, err := readAccounts(rootfs); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %v, want it refused", err)
			}
			if n, err := unix.Read(watch, make([]byte, 4096)); !errors.Is(err, unix.EAGAIN) {
				t.Errorf("it was opened: %d bytes of events, %v", n, err)
			}
		})
	}
}
