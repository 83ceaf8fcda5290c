package cgroup

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestFreeze: of a frozen cgroup nothing runs, not even what forks all the
// time, and once thawed all of it runs.
func TestFreeze(t *testing.T) {
	privilege.Root(t)
	each(t, func(t *testing.T, host *Host, path string) {
		if err := host.Freeze(deadline(t), path); !errdefs.IsNotFound(err) {
			t.Errorf("freeze what is not there: got %v, want not found", err)
		}
		if err := host.Thaw(path); err != nil {
			t.Errorf("thaw what is not there: %v", err)
		}
		if err := host.Create(path); err != nil {
			t.Fatal(err)
		}
		file := t.TempDir() + "/count"
		start(t, host, path, "i=0; while true; do i=$((i+1)); echo $i >"+file+".new; mv "+file+".new "+file+"; sleep 0.001; done")
		awaitCount(t, file, 3)
		for range 3 {
			if err := host.Freeze(deadline(t), path); err != nil {
				t.Fatalf("freeze: %v", err)
			}
			frozen := count(file)
			pids, err := host.Procs(path, true)
			if err != nil {
				t.Fatal(err)
			}
			for _, pid := range pids {
				awaitRest(t, pid)
			}
			if now := count(file); now != frozen {
				t.Errorf("it went on counting from %d to %d while frozen", frozen, now)
			}
			if err := host.Thaw(path); err != nil {
				t.Fatalf("thaw: %v", err)
			}
			awaitCount(t, file, frozen+1)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := host.Freeze(ctx, path); err == nil {
			if err := host.Thaw(path); err != nil { // it was frozen at once
				t.Fatal(err)
			}
		}
		awaitCount(t, file, count(file)+1)
		if err := host.KillAll(deadline(t), path); err != nil {
			t.Fatal(err)
		}
	})
}

// awaitRest waits until a process does not run. A frozen one may be woken for an instant, as when it was just forked
// into a v2 cgroup that is being frozen; it does not leave the kernel then.
func awaitRest(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || !strings.Contains(string(stat), ") R ") {
			return
		}
		if time.Now().After(end) {
			t.Errorf("process %d goes on running: %s", pid, stat)
			return
		}
	}
}

func count(file string) int {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return n
}

func awaitCount(t *testing.T, file string, least int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); count(file) < least; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it counted to %d, want at least %d", count(file), least)
		}
	}
}
