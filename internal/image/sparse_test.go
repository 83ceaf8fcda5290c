package image

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestSparseFilesCountInFull unpacks archives that tar(1) has made of a sparse file of one terabyte, in both
// formats: the file counts with its whole size, and nothing of it is written.
func TestSparseFilesCountInFull(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sparse")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 1<<40); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "posix"} {
		archived, err := exec.Command("tar", "-C", dir, "-S", "--format="+format, "-c", "sparse").Output()
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.CreateTemp(dir, "archive")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(archived, 0); err != nil {
			t.Fatal(err)
		}
		into := filepath.Join(dir, format)
		if err := os.Mkdir(into, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err = unpackLayer(context.Background(), f, unpackTarget{dir: into}, &unpackLimits{max: 1 << 30})
		if !errors.Is(err, errUnpackLimit) {
			t.Errorf("%s, an archive of %d bytes: got %v, want a refusal", format, len(archived), err)
		}
		if entries, err := os.ReadDir(into); err != nil || len(entries) > 0 {
			t.Errorf("%s: %d entries were written, %v", format, len(entries), err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	l := layer{explicit: map[string]bool{}, parents: map[string]bool{}, entries: maxLayerEntries}
	if err := l.admit(&tar.Header{Name: "one more"}, &unpackLimits{}); !errors.Is(err, errUnpackLimit) {
		t.Errorf("entry %d of a layer: got %v, want a refusal", maxLayerEntries+1, err)
	}
}
