package pod

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// feedCrowded is how many events wait for a subscriber before those that
	// later ones make superfluous are dropped.
	feedCrowded = 1024
	// feedLimit is how many may wait after that. So many are the ends of thousands
	// of containers: a reader that lags so far behind has stopped reading.
	feedLimit = 16384
)

// Event is a change of a container or, with the sandbox's ID in place of a
// container's, of a sandbox, with the pod as it was then.
type Event struct {
	Type        runtimeapi.ContainerEventType
	ContainerID string
	At          time.Time
	Sandbox     *Sandbox
	Containers  []*Container
}

// hub tells subscribers of events. It waits for none of them.
//
// Locks: hub.mu before feed.mu; both are leaves otherwise.
type hub struct {
	log    *slog.Logger
	mu     sync.Mutex
	feeds  map[*feed]struct{}
	closed bool
}

// feed is what waits for one subscriber, the oldest first.
type feed struct {
	log *slog.Logger
	// wake holds a token while there is something to take.
	wake chan struct{}

	mu      sync.Mutex
	waiting []Event
	// crowded is the length at which waiting is looked through again.
	crowded int
	// ended says why nothing comes any more.
	ended error
}

// Subscribe delivers what happens from now on: next waits for the next event,
// until its context ends, the engine closes (an ErrUnavailable) or cancel is
// called.
//
// Nothing is dropped unnoticed. While many events wait for a subscriber, a
// CREATED or STARTED is dropped that a later event of the same container
// includes; STOPPED and DELETED are kept, and the order. One who lags further
// behind than that can help gets an ErrResourceExhausted and nothing more.
func (e *Engine) Subscribe() (next func(context.Context) (Event, error), cancel func()) {
	return e.events.subscribe()
}

func (h *hub) subscribe() (next func(context.Context) (Event, error), cancel func()) {
	f := &feed{log: h.log, wake: make(chan struct{}, 1), crowded: feedCrowded}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		f.end(errFeedClosed())
		return f.next, func() {}
	}
	if h.feeds == nil {
		h.feeds = map[*feed]struct{}{}
	}
	h.feeds[f] = struct{}{}
	return f.next, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.feeds, f)
		f.end(errFeedClosed())
	}
}

func errFeedClosed() error {
	return fmt.Errorf("deliver events: the subscription is over: %w", errdefs.ErrUnavailable)
}

func (h *hub) send(ev Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.feeds {
		if !f.push(ev) {
			delete(h.feeds, f)
		}
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.feeds {
		f.end(errFeedClosed())
	}
	h.feeds, h.closed = nil, true
}

// push adds an event; false if the feed has ended.
func (f *feed) push(ev Event) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = append(f.waiting, ev)
	if len(f.waiting) >= f.crowded {
		f.waiting = coalesce(f.waiting)
		f.crowded = max(feedCrowded, 2*len(f.waiting))
	}
	if len(f.waiting) >= feedLimit {
		f.log.Warn("a subscriber of events does not read them and is cut off", "waiting", len(f.waiting))
		f.endLocked(fmt.Errorf("deliver events: %d wait to be read: %w", feedLimit, errdefs.ErrResourceExhausted))
		return false
	}
	f.signal()
	return true
}

// next waits for an event and takes it.
func (f *feed) next(ctx context.Context) (Event, error) {
	for {
		if ev, ok, err := f.take(); ok || err != nil {
			return ev, err
		}
		select {
		case <-f.wake:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

func (f *feed) take() (ev Event, ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.waiting) == 0 {
		return Event{}, false, f.ended
	}
	ev, f.waiting[0] = f.waiting[0], Event{}
	f.waiting = f.waiting[1:]
	if len(f.waiting) == 0 {
		f.waiting, f.crowded = nil, feedCrowded
	}
	return ev, true, nil
}

func (f *feed) end(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(why)
}

// endLocked drops what waits: its reader gets the reason. Preconditions: f.mu is held.
func (f *feed) endLocked(why error) {
	if f.ended == nil {
		f.waiting, f.ended = nil, why
	}
	f.signal()
}

func (f *feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// coalesce drops each CREATED and STARTED after which another event of the
// same container waits: that one has the whole pod with it, and is newer.
func coalesce(waiting []Event) []Event {
	later := make(map[string]bool, len(waiting))
	kept := make([]Event, 0, len(waiting))
	for _, ev := range slices.Backward(waiting) {
		final := ev.Type == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT ||
			ev.Type == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
		if final || !later[ev.ContainerID] {
			kept = append(kept, ev)
		}
		later[ev.ContainerID] = true
	}
	slices.Reverse(kept)
	return kept
}

// published are the events of one object that were published: each is, once.
type published struct {
	// mu is held while an event is published, which keeps them in order.
	mu    sync.Mutex
	kinds uint8
}

func (t *published) has(kind runtimeapi.ContainerEventType) bool { return t.kinds&(1<<kind) != 0 }

// once publishes an event that is news.
func (t *published) once(kind runtimeapi.ContainerEventType, publish func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.has(kind) {
		t.kinds |= 1 << kind
		publish()
	}
}

// skip notes that an earlier daemon has published an event.
func (t *published) skip(kind runtimeapi.ContainerEventType) { t.once(kind, func() {}) }

// skipTold notes what the daemon has published that wrote the record.
func (c *container) skipTold() {
	if c.rec.Listed {
		c.published.skip(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	}
	if !c.rec.StartedAt.IsZero() {
		c.published.skip(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	if c.rec.Exit != nil {
		c.published.skip(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}

// skipTold is for sandboxes what it is for containers.
func (s *sandbox) skipTold() {
	if s.rec.Listed {
		s.published.skip(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
		s.published.skip(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	if s.state.Goal < sandboxReady {
		s.published.skip(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}

// publish tells subscribers of a change of the container.
func (c *container) publish(kind runtimeapi.ContainerEventType) {
	c.published.once(kind, func() { c.sandbox.announce(kind, c.rec.ID) })
}

// publishEnd tells subscribers that the container ended, unless they are to be
// published first that it started: settled then publishes both.
func (c *container) publishEnd() {
	c.published.mu.Lock()
	started := c.published.has(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	c.published.mu.Unlock()
	if started {
		c.publish(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}

// publish tells subscribers of a change of the sandbox.
func (s *sandbox) publish(kind runtimeapi.ContainerEventType) {
	s.published.once(kind, func() { s.announce(kind, s.rec.ID) })
}

// announce describes the pod to subscribers. A sandbox that is gone is described
// as it was last: an event that names no pod is of no use.
func (s *sandbox) announce(kind runtimeapi.ContainerEventType, id string) {
	ev := Event{Type: kind, ContainerID: id, At: time.Now(), Sandbox: s.last.Load()}
	for _, member := range s.members() {
		if v := member.view.Load(); v != nil {
			ev.Containers = append(ev.Containers, v)
		}
	}
	s.engine.events.send(ev)
}
