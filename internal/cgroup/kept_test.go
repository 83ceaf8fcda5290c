package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestKeep: limits that were kept come back, whatever was written meanwhile; a cgroup that is gone is no error.
func TestKeep(t *testing.T) {
	privilege.Root(t)
	h, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/berth-test-keep-%d", os.Getpid())
	if err := h.Create(path); err != nil {
		t.Fatal(err)
	}
	// The kernel rounds a limit, and "none" with it, to whole pages.
	if err := h.LimitHugepages(path, "2MB", 8<<20); err != nil {
		t.Fatal(err)
	}
	kept, err := h.Keep(path, "2MB", "3MB")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LimitHugepages(path, "2MB", 4<<20); err != nil {
		t.Fatal(err)
	}
	if dir, ok := h.Dir("cpuset", path); ok {
		if err := writeString(filepath.Join(dir, "cpuset.cpus"), "0"); err != nil {
			t.Fatal(err)
		}
	}
	if err := kept.Restore(); err != nil {
		t.Fatal(err)
	}
	for _, f := range kept {
		if now, err := readString(f.file); err != nil || now != f.value {
			t.Errorf("%s is %q, %v; want %q", f.file, now, err, f.value)
		}
	}
	if err := h.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := kept.Restore(); err != nil {
		t.Errorf("restore what is gone: %v", err)
	}
}
