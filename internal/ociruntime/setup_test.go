package ociruntime

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// mountHugetlb makes crun 1.8 work on a hybrid host: it refuses to run when a
// controller sits on the v2 hierarchy beside v1 ones. The mount stays: it is the
// host's set-up, and other tests may be using it.
func mountHugetlb(t *testing.T) {
	t.Helper()
	const root = "/sys/fs/cgroup"
	controllers, err := os.ReadFile(filepath.Join(root, "unified/cgroup.controllers"))
	if errors.Is(err, os.ErrNotExist) || err == nil && !bytes.Contains(controllers, []byte("hugetlb")) {
		return
	}
	if err != nil {
		t.Fatalf("read controllers of the v2 hierarchy: %v", err)
	}
	dir := filepath.Join(root, "hugetlb")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("cgroup", dir, "cgroup", 0, "hugetlb"); err != nil && !errors.Is(err, syscall.EBUSY) {
		t.Fatalf("mount hugetlb controller: %v", err)
	}
}
