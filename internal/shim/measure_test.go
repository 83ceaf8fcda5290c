package shim_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// memoryPromise is what one more idle container may cost the supervisor. The goal
	// is 20 KiB; the rest is room for the noise of a garbage-collected heap.
	memoryPromise = 32 << 10
	// crowd is how many containers the measurement starts.
	crowd = 60
)

// TestMemoryPerContainer starts a crowd and divides what the supervisor grew by.
// The first few pay for what all share, so they do not count.
func TestMemoryPerContainer(t *testing.T) {
	h := newHost(t)
	handler := h.handler("crun")
	start := func(i int) {
		h.start(h.bundle(handler, "c"+itoa(i), "echo up; exec sleep 100000"))
	}
	const first = 10
	for i := range first {
		start(i)
	}
	before := h.calmMemory()
	for i := first; i < crowd; i++ {
		start(i)
	}
	per := (h.calmMemory() - before) / (crowd - first)
	t.Logf("private memory: %d KiB with %d containers, %d bytes per container", before>>10, first, per)
	if per > memoryPromise && !raceDetector { // the race detector has its own memory
		t.Errorf("%d bytes per container, promised are %d", per, memoryPromise)
	}
}

// calmMemory is what the supervisor uses once it has given back what it does not
// need any more: the least that is seen for a while.
func (h *host) calmMemory() int {
	least := h.privateMemory()
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		least = min(least, h.privateMemory())
	}
	return least
}

// privateMemory is what the supervisor alone uses.
func (h *host) privateMemory() int {
	h.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", h.client.PID()))
	h.must(err)
	total := 0
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && strings.HasPrefix(fields[0], "Private_") {
			n, err := strconv.Atoi(fields[1])
			h.must(err)
			total += n << 10
		}
	}
	return total
}

func BenchmarkStartAndDelete(b *testing.B) {
	for _, name := range []string{"runc", "crun"} {
		b.Run(name, func(b *testing.B) {
			h := newHost(b)
			req := h.bundle(h.handler(name), "c", "", func(s *specs.Spec) { s.Process.Args = []string{"/bin/sleep", "1000"} })
			for b.Loop() {
				h.start(req)
				b.StopTimer()
				h.must(h.client.Delete(h.ctx(), "c"))
				b.StartTimer()
			}
		})
	}
}

func BenchmarkExec(b *testing.B) {
	for _, name := range []string{"runc", "crun"} {
		b.Run(name, func(b *testing.B) {
			h := newHost(b)
			h.start(h.bundle(h.handler(name), "c", "sleep 1000"))
			for b.Loop() {
				e, err := h.exec("c", "e", &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"})
				h.must(err)
				if code, err := e.Wait(h.ctx()); code != 0 || err != nil {
					b.Fatal(code, err)
				}
				e.close()
			}
		})
	}
}
