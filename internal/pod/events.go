package pod

import (
	"log/slog"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Event is a change of a container, with the pod as it was then.
type Event struct {
	Type        runtimeapi.ContainerEventType
	ContainerID string
	At          time.Time
	Sandbox     *Sandbox
	Containers  []*Container
}

// hub tells subscribers of events. A subscriber who does not read loses the
// newest events, is told so in the log, and holds nobody else up.
type hub struct {
	log    *slog.Logger
	mu     sync.Mutex
	subs   map[chan Event]*int // how many events each has lost
	closed bool
}

// Subscribe delivers events from now on until cancel is called or the engine
// closes, either of which closes the channel. The buffer bounds how far the
// subscriber may lag behind.
func (e *Engine) Subscribe(buffer int) (events <-chan Event, cancel func()) {
	ch := make(chan Event, max(buffer, 1))
	h := &e.events
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(ch)
		return ch, func() {}
	}
	if h.subs == nil {
		h.subs = map[chan Event]*int{}
	}
	h.subs[ch] = new(int)
	return ch, func() { h.drop(ch) }
}

func (h *hub) drop(ch chan Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[ch]; ok {
		delete(h.subs, ch)
		close(ch)
	}
}

func (h *hub) send(ev Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch, lost := range h.subs {
		select {
		case ch <- ev:
			if *lost > 0 {
				h.log.Warn("a subscriber of events was too slow", "lost", *lost)
				*lost = 0
			}
		default:
			*lost++
		}
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.subs {
		close(ch)
	}
	h.subs, h.closed = nil, true
}

// publish tells subscribers of a change of the container.
func (c *container) publish(kind runtimeapi.ContainerEventType) {
	ev := Event{Type: kind, ContainerID: c.rec.ID, At: time.Now(), Sandbox: c.sandbox.view.Load()}
	for _, member := range c.sandbox.members() {
		if v := member.view.Load(); v != nil {
			ev.Containers = append(ev.Containers, v)
		}
	}
	c.engine.events.send(ev)
}
