package ociruntime

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestRemoveScratchOfAKilledRuntime: crun binds its own program to a file for an
// instant, and may be killed then.
func TestRemoveScratchOfAKilledRuntime(t *testing.T) {
	privilege.Root(t)
	scratch := filepath.Join(t.TempDir(), "scratch")
	for _, dir := range []string{scratch, filepath.Join(scratch, "exec/one")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"crun.abcdef", "crun.unmounted", "runc.unmounted"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Mount("/proc/self/exe", filepath.Join(dir, "crun.abcdef"), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second finds nothing
		if err := RemoveScratch(scratch); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(scratch); !os.IsNotExist(err) {
		t.Errorf("the directory is there: %v", err)
	}
}

// TestCrunKeepsToItsScratch kills crun at many instants of a start: whatever it
// leaves is in the scratch directory, nothing is where other programs keep theirs.
func TestCrunKeepsToItsScratch(t *testing.T) {
	mountHugetlb(t)
	before, err := filepath.Glob("/tmp/crun.*")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for round := range 40 {
		scratch := filepath.Join(t.TempDir(), "scratch")
		if err := os.Mkdir(scratch, 0o700); err != nil {
			t.Fatal(err)
		}
		r, err := New(Handler{Name: "crun", Path: "crun", Root: filepath.Join(scratch, "root")}, Local{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(500+round*50)*time.Microsecond) // the point of the test: many instants
		_, _ = r.output(ctx, scratch, "--version")                                                    // it is killed, or it is through
		cancel()
		left, err := filepath.Glob(filepath.Join(scratch, "crun.*"))
		if err != nil {
			t.Fatal(err)
		}
		found += len(left)
		if err := RemoveScratch(scratch); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("crun was cut off in its clone %d times", found)
	if after, err := filepath.Glob("/tmp/crun.*"); err != nil || len(after) != len(before) {
		t.Errorf("crun left %v in /tmp, %v", after, err)
	}
}
