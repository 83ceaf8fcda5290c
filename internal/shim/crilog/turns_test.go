package crilog

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTurnIsBounded: one turn writes a bounded amount of log, whatever the output is.
func TestTurnIsBounded(t *testing.T) {
	f := setUp(t)
	if _, err := unix.Write(f.w, []byte(strings.Repeat("\n", 60000))); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Copy(Stdout, f.r); err != nil || n == 0 {
		t.Fatalf("copied %d bytes: %v", n, err)
	}
	info, err := os.Stat(f.log)
	if err != nil || info.Size() == 0 || info.Size() > turnBytes {
		t.Errorf("log after one turn: %v, %v, want at most %d bytes", info.Size(), err, turnBytes)
	}
}
