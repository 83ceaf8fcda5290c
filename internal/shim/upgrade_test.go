package shim_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/test/disk"
)

// TestUpgradeKeepsDroppedReaders: a client whose view of the output was cut, because it did not read, is refused a clean end of
// the view by the supervisor's successor, too.
func TestUpgradeKeepsDroppedReaders(t *testing.T) {
	h := newHost(t)
	req := h.bundle(h.handler("runc"), "c", "while ! test -e /begin; do sleep 0.02; done; yes 0123456789 | head -c 6400000; echo end; sleep 1000")
	h.start(req)
	a, err := h.client.Attach(h.ctx(), "c", false)
	h.must(err)
	h.must(os.WriteFile(filepath.Join(req.Bundle, "rootfs/begin"), nil, 0o600))
	h.eventually("everything is in the log", func() bool { return strings.HasSuffix(h.log("c")["stdout"], "end\n") })
	h.must(h.client.Upgrade(h.ctx(), binary))
	if err := a.Close(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("the end of the view: got %v, want ErrResourceExhausted", err)
	}
}

// TestUpgradeWithHungLog: an upgrade is refused while the log disk of a container hangs, and the supervisor goes on: for the
// container, for others, and for the last output of one that is deleted meanwhile. Then the upgrade is granted.
func TestUpgradeWithHungLog(t *testing.T) {
	h := newHost(t)
	d := disk.New(t)
	handler := h.handler("runc")
	flood := h.bundle(handler, "flood", "i=0; while :; do i=$((i+1)); echo $i; done")
	flood.LogPath = filepath.Join(d.Dir, "flood.log")
	h.start(flood)
	h.start(h.bundle(handler, "count", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"))
	thaw := d.Freeze()
	h.eventually("the supervisor waits for the disk", func() bool { return disk.Awaited(h.client.PID()) == nil })
	last := h.bundle(handler, "last", "echo last words")
	last.LogPath = filepath.Join(d.Dir, "last.log")
	h.start(last)
	h.exit("last")
	h.must(h.client.Delete(h.ctx(), "last"))
	for range 2 {
		if err := h.client.Upgrade(h.ctx(), binary); !errdefs.IsUnavailable(err) {
			t.Errorf("upgrade while a log hangs: got %v, want ErrUnavailable", err)
		}
	}
	size := len(h.log("count")["stdout"])
	h.eventually("the log of another container grows", func() bool { return len(h.log("count")["stdout"]) > size })
	for _, id := range []string{"flood", "count"} {
		e, err := h.exec(id, "e", shell("exit 3"))
		h.must(err)
		if code, err := e.Wait(h.ctx()); code != 3 || err != nil {
			t.Errorf("exec in %s: got %d %v", id, code, err)
		}
	}
	thaw()
	h.eventually("the last words are logged", func() bool {
		text, err := os.ReadFile(last.LogPath)
		return err == nil && strings.HasSuffix(string(text), " stdout F last words\n")
	})
	h.eventually("the upgrade is granted", func() bool { return h.client.Upgrade(h.ctx(), binary) == nil })
	h.must(h.client.Kill(h.ctx(), "flood", syscall.SIGKILL))
	h.exit("flood")
	text, err := os.ReadFile(flood.LogPath)
	h.must(err)
	checkSequence(t, parseLog(t, text)["stdout"])
}
