package shim_test

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestLogLimit runs a container that writes empty lines as fast as it can, with a limit, beside one
// without. The log of the first grows by no more than its limit, time stamps included; the second one
// writes a hundred times as much meanwhile. A successor of the supervisor keeps the limit, and the
// counters say how long output has waited.
func TestLogLimit(t *testing.T) {
	const limit = 64 << 10
	h := newHost(t)
	flood := h.bundle(h.handler("runc"), "flood", "yes ''")
	flood.LogLimit = limit
	plain := h.bundle(h.handler("runc"), "plain", "yes 0123456789 | head -c 6400000; echo end; sleep 1000")
	begun := time.Now()
	h.start(flood)
	check := func(when string) {
		t.Helper()
		info, err := os.Stat(flood.LogPath)
		h.must(err)
		// For each supervisor, one second's worth is free and one turn of as much may begin below it.
		if most := int64(limit * (time.Since(begun).Seconds() + 5)); info.Size() == 0 || info.Size() > most {
			t.Errorf("%s, the log has %d bytes, want some and at most %d", when, info.Size(), most)
		}
	}
	h.start(plain)
	h.eventually("the container without a limit has written everything", func() bool { return strings.HasSuffix(h.log("plain")["stdout"], "end\n") })
	check("beside a container without a limit")
	totals, err := h.client.LogTotals(h.ctx())
	h.must(err)
	if totals.Written < 6400000 || totals.Throttled == 0 || totals.Dropped != 0 {
		t.Errorf("the counters are %+v, want 6,400,000 bytes or more written, some time throttled, nothing dropped", totals)
	}
	h.killShim()
	h.eventually("a successor writes the log", func() bool {
		totals, err := h.client.LogTotals(h.ctx())
		return err == nil && totals.Throttled > 0
	})
	check("after the supervisor was replaced")
}
