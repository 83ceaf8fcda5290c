package stream

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// ticketLife is how long a URL may be used after it was given out.
	ticketLife = time.Minute
	// maxTickets bounds the URLs that were given out and not used.
	maxTickets = 1000
	// tokenBytes is the length of the secret in a URL before it is encoded.
	tokenBytes = 16
)

// ticket is a session that was granted and has not begun.
type ticket struct {
	kind string
	// owner is the ID of the container or, for port-forward, of the sandbox.
	owner   string
	command []string
	pipes   Pipes
	ports   []int32
	expires time.Time
}

// tickets holds what was granted, by token. Each is used at most once.
type tickets struct {
	now func() time.Time

	mu sync.Mutex
	// issued is bounded by maxTickets; expired ones are dropped when room is needed.
	issued map[string]ticket
}

func newTickets(now func() time.Time) *tickets {
	return &tickets{now: now, issued: make(map[string]ticket)}
}

// issue keeps t for ticketLife and returns the token that redeems it. If too
// many are waiting already the error is an [errdefs.ErrResourceExhausted].
func (ts *tickets) issue(t ticket) (string, error) {
	var secret [tokenBytes]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return "", fmt.Errorf("make a session token: %w", err)
	}
	token := hex.EncodeToString(secret[:])
	now := ts.now()
	t.expires = now.Add(ticketLife)

	ts.mu.Lock()
	defer ts.mu.Unlock()
	if len(ts.issued) >= maxTickets {
		ts.dropExpired(now)
	}
	if len(ts.issued) >= maxTickets {
		return "", fmt.Errorf("grant a streaming session: %d URLs wait to be used: %w", maxTickets, errdefs.ErrResourceExhausted)
	}
	ts.issued[token] = t
	return token, nil
}

// redeem takes the ticket of token out if it is of kind and not too old.
func (ts *tickets) redeem(kind, token string) (ticket, bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t, ok := ts.issued[token]
	if !ok || t.kind != kind {
		return ticket{}, false
	}
	delete(ts.issued, token)
	return t, ts.now().Before(t.expires)
}

// revoke drops every ticket of owner.
func (ts *tickets) revoke(owner string) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for token, t := range ts.issued {
		if t.owner == owner {
			delete(ts.issued, token)
		}
	}
}

// dropExpired makes room. Preconditions: ts.mu is held.
func (ts *tickets) dropExpired(now time.Time) {
	for token, t := range ts.issued {
		if !now.Before(t.expires) {
			delete(ts.issued, token)
		}
	}
}
