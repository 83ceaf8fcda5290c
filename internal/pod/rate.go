package pod

import (
	"sync"
	"time"
)

// rateWindow is the least time over which CPU use is averaged: two readers that
// ask one after the other get the same rate, not one of noise.
const rateWindow = time.Second

// rate computes use per second from one reading to the next. It belongs to the
// sandbox or container that it is about, and goes with it.
type rate struct {
	mu        sync.Mutex
	at        time.Time
	total     uint64
	perSecond uint64
}

// next takes a reading of the total and returns how much it grew per second
// since the one before, at first since the beginning.
func (r *rate) next(at time.Time, total uint64, beginning time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := r.at.IsZero()
	if first {
		r.at = beginning
	}
	past := at.Sub(r.at)
	if past < rateWindow && !first {
		return r.perSecond
	}
	grown := uint64(0)
	if total > r.total {
		grown = total - r.total
	}
	if past > 0 {
		r.perSecond = uint64(float64(grown) / past.Seconds())
	}
	r.at, r.total = at, total
	return r.perSecond
}
