package store

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
	s := New(t.TempDir())
	file := filepath.Join(s.root, "record.json")
	const frame = 100 // more than the envelope
	var got string
	if err := errors.Join(s.Write(file, strings.Repeat("x", maxRecord-frame)), s.Read(file, &got)); err != nil {
		t.Fatal(err)
	}
	if len(got) != maxRecord-frame {
		t.Errorf("%d bytes are read back", len(got))
	}
	if err := s.Write(file, strings.Repeat("x", maxRecord)); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "8388608") {
		t.Errorf("a record beyond the limit: %v", err)
	}
	if err := s.Read(file, &got); err != nil || len(got) != maxRecord-frame {
		t.Errorf("the record before it: %d bytes, %v", len(got), err)
	}
	if entries, err := os.ReadDir(s.root); err != nil || len(entries) != 1 {
		t.Errorf("left are %v, %v", entries, err)
	}
}
