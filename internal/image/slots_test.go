package image

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// A registry host that holds all slots for ever keeps neither another host from its share nor another pull
// from its one slot, and a free slot goes to the host with the fewest.
func TestSlotsAreFair(t *testing.T) {
	s := newSlots(4)
	refused := func(p *pullSlots) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 { // a grant and the end of the context may come together
			if err := p.Acquire(ctx, 1); err == nil {
				p.Release(1)
				s.mu.Lock()
				full := !s.entitled(p)
				s.mu.Unlock()
				if full {
					t.Error("a slot was granted beyond the limit")
				}
				return
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}
	granted := func(p *pullSlots, n int) {
		t.Helper()
		for range n {
			if err := p.Acquire(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	slow := s.forPull("slow")
	granted(slow, 4)
	refused(slow)
	granted(s.forPull("slow"), 1) // another image there
	other := s.forPull("other")
	granted(other, 2) // 4 slots, 2 hosts
	refused(other)
	other.Release(1)
	other.Release(1)
	for range 4 {
		slow.Release(1)
	}
	if s.total != 1 || len(s.waiting) != 0 || len(s.hosts) != 1 {
		t.Errorf("left: %d slots, %d waiting, %d hosts", s.total, len(s.waiting), len(s.hosts))
	}
}

// A pull waits for another one of the same host that has the key, until that is slow. Pulls from other hosts
// do not wait.
func TestSlowPullDoesNotHoldUpOthers(t *testing.T) {
	work := newSharedWork()
	first, second, other := work.forPull("host"), work.forPull("host"), work.forPull("other")
	for _, p := range []*pullWork{first, other} {
		if err := p.Lock(t.Context(), "layer"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := second.Lock(ctx, "layer"); !errors.Is(err, context.Canceled) {
		t.Errorf("while the first is fast: got %v, want that it waits", err)
	}
	first.markSlow()
	if err := second.Lock(t.Context(), "layer"); err != nil {
		t.Errorf("while the first is slow: %v", err)
	}
	for _, p := range []*pullWork{first, second, other} {
		p.Unlock("layer")
	}
	if len(work.held) != 0 {
		t.Errorf("%d keys are still held", len(work.held))
	}
}

// Whatever the name of the token and the type of its lifetime, a token service is understood.
func TestTokenAnswers(t *testing.T) {
	now := time.Now()
	for text, life := range map[string]time.Duration{
		`{"token":"t","expires_in":60,"issued_at":"yesterday"}`:     time.Minute,
		`{"access_token":"t","expires_in":"60"}`:                    time.Minute,
		`{"access_token":"","token":"t","expires_in":"60 "}`:        time.Minute,
		`{"token":"t","issued_at":12,"refresh_token":null}`:         0,
		`{"token":"t","expires_in":"soon"}`:                         0,
		`{"token":"t","expires_in":-1}`:                             0,
		`{"token":"t","expires_in":1e300}`:                          maxTokenLife,
		`{"token":"u","access_token":"t","expires_in":59.99999999}`: 59999999990 * time.Nanosecond,
	} {
		got, err := readToken([]byte(text), now)
		if err != nil || got.value != "t" {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
		if life == 0 != got.expires.IsZero() || life != 0 && got.expires.Sub(now) != life {
			t.Errorf("%s: expires %s, want after %s", text, got.expires, life)
		}
	}
	for _, text := range []string{``, `{}`, `{"token":""}`, `{"token":1}`, `<html>`, `{"token":"` + strings.Repeat("x", maxTokenAnswer) + `"}`} {
		if got, err := readToken([]byte(text), now); err == nil {
			t.Errorf("%.40s: got %.40s, want an error", text, got.value)
		}
	}
}
