package pod

import (
	"testing"
	"time"
)

// TestRate: the average since the beginning, then since the reading before;
// readers that ask again at once get the same.
func TestRate(t *testing.T) {
	began := time.Unix(1000, 0)
	after := func(d time.Duration) time.Time { return began.Add(d) }
	var r rate
	for _, tc := range []struct {
		at    time.Duration
		total uint64
		want  uint64
	}{
		{10 * time.Second, 5e9, 5e8},
		{10*time.Second + time.Millisecond, 6e9, 5e8},
		{12 * time.Second, 7e9, 1e9},
		{14 * time.Second, 7e9, 0},
		{16 * time.Second, 1e9, 0}, // the counter was reset
		{17 * time.Second, 2e9, 1e9},
	} {
		if got := r.next(after(tc.at), tc.total, began); got != tc.want {
			t.Errorf("after %v with %d: %d, want %d", tc.at, tc.total, got, tc.want)
		}
	}
	var fresh rate
	if got := fresh.next(began, 5, began); got != 0 {
		t.Errorf("no time has passed: %d, want 0", got)
	}
}
