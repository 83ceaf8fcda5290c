package supervisor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLogFileIsBounded writes more than the limit to the supervisor's own log: two files are kept,
// neither is above the limit, no recent line is lost, and standard error follows.
func TestLogFileIsBounded(t *testing.T) {
	saved, err := unix.FcntlInt(uintptr(unix.Stderr), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Dup3(saved, unix.Stderr, 0); err != nil {
			t.Error(err)
		}
		_ = unix.Close(saved)
	}()
	path := filepath.Join(t.TempDir(), "shim.log")
	l, err := OpenLogFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.file.Close() }()
	l.limit = 1000
	const lines, length = 100, 50
	for i := range lines {
		if _, err := fmt.Fprintf(l, "%049d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := unix.Write(unix.Stderr, []byte("crash")); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(old) > 1000 || len(now) > 1000+len("crash") {
		t.Errorf("the files have %d and %d bytes, want at most 1000", len(old), len(now))
	}
	all := append(old, now...)
	first := lines - (len(all)-len("crash"))/length
	var want bytes.Buffer
	for i := first; i < lines; i++ {
		fmt.Fprintf(&want, "%049d\n", i)
	}
	want.WriteString("crash")
	if first > lines-20 || !bytes.Equal(all, want.Bytes()) {
		t.Errorf("the files have %d lines from %d on, want the last 20 or more:\n%s", lines-first, first, all)
	}
}
