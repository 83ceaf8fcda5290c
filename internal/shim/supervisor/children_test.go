package supervisor

import (
	"bufio"
	"context"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-runtime/berth/test/leakcheck"
)

// TestAdoptEarly: a container's process is adopted while its parent, a helper of the OCI runtime which outlives the
// runtime by a moment, is still there. Its exit status is known all the same, on kernels too which keep no status in a
// pidfd (Linux before 6.15: exit codes were reported as unknown there, now and then).
func TestAdoptEarly(t *testing.T) {
	leakcheck.Check(t)
	if err := becomeSubreaper(); err != nil {
		t.Fatal(err)
	}
	c := newChildren(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var reaping sync.WaitGroup
	reaping.Go(func() { c.reap(ctx) })
	t.Cleanup(reaping.Wait)
	t.Cleanup(cancel)

	helperReads, endHelper := pipe(t)
	said, helperSays := pipe(t)
	childReads, endChild := pipe(t)
	helperEnded := make(chan uint32, 1)
	_, err := c.start(func() (int, error) {
		return syscall.ForkExec("/bin/sh", []string{"sh", "-c", `sh -c "read x <&3; exit 7" & echo $!; read x`}, &syscall.ProcAttr{
			Files: []uintptr{helperReads.Fd(), helperSays.Fd(), os.Stderr.Fd(), childReads.Fd()},
		})
	}, func(status uint32) { helperEnded <- status })
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	reported := make(chan uint32, 1)
	if _, ours := c.adopt(pid, &watcher{func(status uint32) { reported <- status }}); ours {
		t.Fatalf("process %d is a child already; want a grandchild", pid)
	}
	for _, step := range []struct {
		what  string
		end   *os.File
		ended chan uint32
		code  int
	}{{"helper", endHelper, helperEnded, 1}, {"container", endChild, reported, 7}} {
		if err := step.end.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case status := <-step.ended:
			if code, _ := decode(status); code != step.code {
				t.Errorf("the %s ended with %d, want %d", step.what, code, step.code)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("the end of the %s was not reported", step.what)
		}
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}
