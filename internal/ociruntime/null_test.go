package ociruntime

import (
	"errors"
	"io"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// TestOpenNull: it is the device, and a holder of it cannot change the owner
// of the host's device (containers/crun#1845).
func TestOpenNull(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	null, err := openNull()
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := null.WriteString("text"); err != nil {
		t.Errorf("write: %v", err)
	}
	if n, err := null.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read: %d, %v, want its end", n, err)
	}
	var own, hosts unix.Stat_t
	if err := errors.Join(unix.Fstat(int(null.Fd()), &own), unix.Stat(os.DevNull, &hosts)); err != nil {
		t.Fatal(err)
	}
	if own.Rdev != hosts.Rdev || own.Ino != hosts.Ino {
		t.Errorf("it is device %d, inode %d, want %d and %d", own.Rdev, own.Ino, hosts.Rdev, hosts.Ino)
	}
	for what, err := range map[string]error{"owner": null.Chown(int(hosts.Uid), int(hosts.Gid)), "mode": null.Chmod(os.FileMode(hosts.Mode & 0o777))} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("change its %s: got %v, want %v", what, err, syscall.EROFS)
		}
	}
}

// TestStreamsThatNobodyAskedFor: a container's process has them all the same, and they are not the host's own device.
func TestStreamsThatNobodyAskedFor(t *testing.T) {
	leakcheck.Check(t)
	path := script(t, `
for i in 0 1; do
	test /proc/self/fd/$i -ef /dev/null || { echo stream $i is another >&2; exit 1; }
	! chown 0:0 /proc/self/fd/$i || { echo stream $i can be changed >&2; exit 1; }
done`)
	r, err := New(Handler{Name: "x", Type: TypeOCI, Path: path, Root: t.TempDir()}, Local{})
	if err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	if err := r.Run(t.Context(), RunRequest{ID: "c", Bundle: scratch, Scratch: scratch}); err != nil {
		t.Errorf("run: %v", err)
	}
	if err := r.Exec(t.Context(), ExecRequest{ID: "c", Scratch: scratch}); err != nil {
		t.Errorf("exec: %v", err)
	}
}
