package checkpoint

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExportTreeFollowsNoLink replaces a file by a link to a file of the host, again and again, while the tree is exported.
func TestExportTreeFollowsNoLink(t *testing.T) {
	dir, host := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	for _, err := range []error{
		os.WriteFile(host, []byte("secret of the host"), 0o600), os.WriteFile(file, []byte("own"), 0o600),
		os.Symlink(host, link), unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				stopped <- err
				return
			}
		}
	}()
	exported := 0
	for range 500 {
		var out bytes.Buffer
		err := ExportTree(t.Context(), &out, dir)
		if bytes.Contains(out.Bytes(), []byte("secret of the host")) {
			t.Fatal("the archive holds a file of the host")
		}
		if err == nil { // else a link was met where a file was
			exported++
		}
	}
	if exported == 0 {
		t.Error("no export succeeds")
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}
