// Package usermap gives tests user namespaces, and owners of files to compare.
package usermap

import (
	"os"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/namespace"
)

// User makes a user namespace whose root is a user of the host. It lives as long as t.
func User(t testing.TB, root uint32) *os.File {
	t.Helper()
	ids := []specs.LinuxIDMapping{{HostID: root, Size: 1 << 16}}
	f, err := namespace.NewUser(ids, ids)
	if err != nil {
		t.Fatalf("make a user namespace for the test: %v", err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// Owner returns the user that a file belongs to.
func Owner(t testing.TB, path string) uint32 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}
