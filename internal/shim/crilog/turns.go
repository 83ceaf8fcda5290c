package crilog

import (
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// turnTime is how long a turn lasts at most: a log whose disk hangs does not stop others.
const turnTime = 100 * time.Millisecond

// Turns shares the writing of logs among the containers of a node. A turn writes at
// most turnBytes of log, and containers that wait for one get theirs in the order of their
// requests. So a container that floods its log delays another one by one turn each time.
// It also counts for all of them.
type Turns struct {
	free chan struct{}

	written, dropped, throttled atomic.Uint64
}

// Totals are counters over all containers of a supervisor.
type Totals struct {
	// Written and Dropped are bytes of log, and bytes of output that could not be logged.
	Written, Dropped uint64
	// Throttled is how long output has waited for the limit of its container.
	Throttled time.Duration
}

// NewTurns returns the turns of a node, of which so many may run at the same time.
func NewTurns(parallel int) *Turns {
	t := &Turns{free: make(chan struct{}, parallel)}
	for range parallel {
		t.free <- struct{}{}
	}
	return t
}

// Totals returns the counters.
func (t *Turns) Totals() Totals {
	return Totals{Written: t.written.Load(), Dropped: t.dropped.Load(), Throttled: time.Duration(t.throttled.Load())}
}

// begin waits for a turn. The caller calls end when it is over; after turnTime the next one begins anyway.
func (t *Turns) begin(closing <-chan struct{}) (end func(), err error) {
	if t == nil {
		return func() {}, nil
	}
	select {
	case <-t.free:
	case <-closing:
		return nil, os.ErrClosed
	}
	pass := sync.OnceFunc(func() { t.free <- struct{}{} })
	timer := time.AfterFunc(turnTime, pass)
	return func() {
		timer.Stop()
		pass()
	}, nil
}

func (t *Turns) count(written, dropped int) {
	if t != nil {
		t.written.Add(uint64(written))
		t.dropped.Add(uint64(dropped))
	}
}

// bucket is the token bucket of one container. Its zero value is full.
type bucket struct {
	mu    sync.Mutex // guards what follows
	spent int64      // bytes written and not yet paid for; up to one second's worth is free
	at    time.Time  // when spent was right
}

// take counts bytes that were written.
func (b *bucket) take(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spent += int64(n)
}

// debt returns how long to wait until no more than a second's worth is unpaid at limit bytes per second.
func (b *bucket) debt(limit int64, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at.IsZero() {
		b.at = now
	}
	if paid := int64(now.Sub(b.at).Seconds() * float64(limit)); paid > 0 {
		b.spent, b.at = max(0, b.spent-paid), now
	}
	if b.spent <= limit {
		return 0
	}
	return time.Duration(float64(b.spent-limit) / float64(limit) * float64(time.Second))
}

// pay waits until the container may write again, or is closed.
func (w *Writer) pay() {
	if w.Limit <= 0 {
		return
	}
	debt := w.bucket.debt(w.Limit, time.Now())
	if debt == 0 {
		return
	}
	begun := time.Now()
	timer := time.NewTimer(debt)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.closing:
	}
	if w.Turns != nil {
		w.Turns.throttled.Add(uint64(time.Since(begun)))
	}
}

// budget is how many bytes of log one turn may write.
func (w *Writer) budget() int {
	if w.Limit > 0 {
		return int(min(turnBytes, w.Limit))
	}
	return turnBytes
}
