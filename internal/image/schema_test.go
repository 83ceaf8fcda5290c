package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestGoldenRecords reads records of version 1 as version 0.1.0 wrote them, and writes them back.
func TestGoldenRecords(t *testing.T) {
	record, err := readRootfs("testdata/rootfs.v1.json")
	if err != nil {
		t.Fatal(err)
	}
	if record.Image != "sha256:a" || record.Chain != "sha256:c" || !slices.Equal(record.Layers, []string{"sha256:l2", "sha256:l1"}) {
		t.Errorf("record of a writable layer is %+v", record)
	}
	again, err := json.Marshal(record)
	if golden := read(t, "testdata/rootfs.v1.json"); err != nil || !bytes.Equal(again, bytes.TrimSpace(golden)) {
		t.Errorf("record is written back as %s (%v), want %s", again, err, golden)
	}

	had, err := readNames("testdata/names.v1.json")
	if err != nil {
		t.Fatal(err)
	}
	if d := had["registry.example/app:1"]; len(had) != 1 || d.Size != 7023 || d.Digest == "" {
		t.Errorf("names are %v", had)
	}
	file := filepath.Join(t.TempDir(), "names.json")
	if err := had.write(file); err != nil {
		t.Fatal(err)
	}
	if again, golden := read(t, file), read(t, "testdata/names.v1.json"); !bytes.Equal(again, bytes.TrimSpace(golden)) {
		t.Errorf("names are written back as %s, want %s", again, golden)
	}
}

// TestNewerRecordsAreLeftUntouched: a store with the record of a newer version is refused, and the record stays as it is.
func TestNewerRecordsAreLeftUntouched(t *testing.T) {
	privilege.Root(t)
	for name, file := range map[string]string{"rootfs": filepath.Join(rootfsDir, "key", rootfsRecord), "volume": filepath.Join(volumesDir, "key")} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, file)
			newer := bytes.Replace(read(t, "testdata/rootfs.v1.json"), []byte(`"version":1`), []byte(`"version":2`), 1)
			for _, dir := range []string{filepath.Join(root, rootfsDir), filepath.Join(root, volumesDir), filepath.Dir(path)} {
				if err := os.MkdirAll(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(path, newer, 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err := Open(t.Context(), Options{Root: root, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}); !errors.Is(err, errNewer) {
				t.Errorf("open a store with a newer record: %v, %v, want %v", s, err, errNewer)
			}
			if now := read(t, path); !bytes.Equal(now, newer) {
				t.Errorf("the newer record is %q now", now)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "names.json")
	newer := bytes.Replace(read(t, "testdata/names.v1.json"), []byte(`"version":1`), []byte(`"version":2`), 1)
	if err := os.WriteFile(path, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if had, err := readNames(path); err == nil || !bytes.Equal(read(t, path), newer) {
		t.Errorf("newer names are read as %v, or changed", had)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
