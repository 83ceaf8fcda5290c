package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestRecordIsReadBackOrRefused writes records up to and beyond the limit.
func TestRecordIsReadBackOrRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, recordFile)
	// object is a JSON object of n bytes once it has its checksum.
	object := func(n int) map[string]string {
		rest := len(addChecksum([]byte(`{"k":""}`)))
		return map[string]string{"k": strings.Repeat("x", n-rest)}
	}
	if err := save(file, object(maxRecord)); err != nil {
		t.Fatal(err)
	}
	if text, err := readRecord(file); err != nil || len(text) != maxRecord {
		t.Errorf("%d bytes are read back, %v", len(text), err)
	}
	if err := save(file, object(maxRecord+1)); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a record beyond the limit: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left are %v, %v", entries, err)
	}
	if err := os.WriteFile(file, make([]byte, maxRecord+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readRecord(file); err == nil {
		t.Error("a file beyond the limit is read")
	}
}
