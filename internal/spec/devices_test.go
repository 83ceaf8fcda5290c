package spec

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestDevicesComeAndGo: a directory of devices that vanishes while those of the host are listed keeps no privileged
// container from being made.
func TestDevicesComeAndGo(t *testing.T) {
	privilege.Root(t)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	coming := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			node := filepath.Join(dir, "bus/usb/001")
			if err := errors.Join(os.MkdirAll(filepath.Dir(node), 0o700), unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))), os.RemoveAll(filepath.Join(dir, "bus"))); err != nil {
				coming <- err
				return
			}
		}
		coming <- nil
	}()
	const often = 50
	found := 0
	for found < often && ctx.Err() == nil {
		nodes, err := walkDevices(t.Context(), "linux.security_context.privileged", dir, "/dev", elsewhere)
		if err != nil {
			t.Error(err)
			break
		}
		found += len(nodes)
	}
	cancel()
	if err := <-coming; err != nil {
		t.Fatal(err)
	}
	if found < often {
		t.Errorf("the device was met %d times, want %d", found, often)
	}
}
