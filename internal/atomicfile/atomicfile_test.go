package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/privilege"
)

func TestWriteReplaces(t *testing.T) {
	for name, write := range map[string]func(string, []byte, os.FileMode) error{"Write": Write, "WriteDurable": WriteDurable} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			// A writer that was killed left more than the next one writes.
			if err := os.WriteFile(Temporary(path), []byte(strings.Repeat("x", 100)), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, content := range []string{"long content", "short"} {
				if err := write(path, []byte(content), 0o640); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(path); err != nil || string(got) != content {
					t.Errorf("content is %q (%v), want %q", got, err, content)
				}
			}
			if got := names(t, filepath.Dir(path)); !slices.Equal(got, []string{"file"}) {
				t.Errorf("directory holds %v, want the file alone", got)
			}
		})
	}
}

// TestFailedWriteKeepsOldContent fills the file system.
func TestFailedWriteKeepsOldContent(t *testing.T) {
	privilege.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "file")
	if err := Write(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write beyond the file system's size: %v, want ENOSPC", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Errorf("content is %q (%v), want the old one", got, err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"file"}) {
		t.Errorf("directory holds %v, want the file alone", got)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}
