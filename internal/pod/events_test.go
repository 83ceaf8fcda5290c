package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/privilege"
)

// The events of these tests.
const (
	created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// drainFeed takes what waits.
func drainFeed(t *testing.T, next func(context.Context) (Event, error)) []Event {
	t.Helper()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var all []Event
	for {
		ev, err := next(ended)
		if errors.Is(err, context.Canceled) {
			return all
		}
		if err != nil {
			t.Fatalf("next: %v", err)
		}
		all = append(all, ev)
	}
}

// A subscriber who does not read for a while loses no end of a container, and
// what it gets of each container is in order.
func TestSlowSubscriberLosesNoEnd(t *testing.T) {
	h := &hub{log: slog.New(slog.DiscardHandler)}
	next, cancel := h.subscribe()
	defer cancel()
	const containers = 3000
	for i := range containers {
		for _, kind := range []runtimeapi.ContainerEventType{created, started, stopped, deleted} {
			h.send(Event{Type: kind, ContainerID: fmt.Sprint(i)})
		}
	}
	h.send(Event{Type: created, ContainerID: "last"})
	h.send(Event{Type: started, ContainerID: "last"})
	got := drainFeed(t, next)
	if most := 2*containers + feedCrowded + 2*containers; len(got) > most {
		t.Errorf("%d events waited, want at most %d", len(got), most)
	}
	seen := map[string][]runtimeapi.ContainerEventType{}
	for _, ev := range got {
		seen[ev.ContainerID] = append(seen[ev.ContainerID], ev.Type)
	}
	for id, kinds := range seen {
		ends := 0
		for i, kind := range kinds {
			if i > 0 && kind <= kinds[i-1] {
				t.Fatalf("container %s: events %v are out of order", id, kinds)
			}
			if kind == stopped || kind == deleted {
				ends++
			}
		}
		if id != "last" && ends != 2 {
			t.Fatalf("container %s: events %v, want STOPPED and DELETED in it", id, kinds)
		}
	}
	if len(seen) != containers+1 || seen["last"][len(seen["last"])-1] != started {
		t.Errorf("events of %d containers, the last one's are %v; want %d and STARTED", len(seen), seen["last"], containers+1)
	}
}

// A subscriber who never reads costs bounded memory, and learns that it was
// cut off; others go on.
func TestSubscriberWhoNeverReadsIsCutOff(t *testing.T) {
	h := &hub{log: slog.New(slog.DiscardHandler)}
	deaf, cancelDeaf := h.subscribe()
	defer cancelDeaf()
	for i := range feedLimit {
		h.send(Event{Type: stopped, ContainerID: fmt.Sprint(i)})
	}
	if _, err := deaf(t.Context()); !errdefs.IsResourceExhausted(err) {
		t.Errorf("next says %v, want that the resource is exhausted", err)
	}
	next, cancel := h.subscribe()
	h.send(Event{Type: created, ContainerID: "a"})
	if ev, err := next(t.Context()); err != nil || ev.ContainerID != "a" {
		t.Errorf("another subscriber gets %v, %v", ev, err)
	}
	cancel()
	if _, err := next(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("next after cancel says %v, want unavailable", err)
	}
	h.close()
	late, _ := h.subscribe()
	if _, err := late(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("next of a hub that is closed says %v, want unavailable", err)
	}
}

// The life of a pod is published once and in order, by the engine that saw it: one
// that takes a pod up tells nothing that did not change.
func TestEventsOfAPod(t *testing.T) {
	privilege.Root(t)
	n := newNode(t)
	next, cancel := n.engine.Subscribe()
	if err := n.run(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	want := func(next func(context.Context) (Event, error), kinds ...runtimeapi.ContainerEventType) {
		t.Helper()
		for _, kind := range kinds {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			ev, err := next(ctx)
			cancel()
			if err != nil || ev.Type != kind || ev.ContainerID != n.ids["web"] || ev.Sandbox.Config.GetMetadata().GetName() != "web" {
				t.Fatalf("event %v, %v; want %v of the sandbox", ev, err, kind)
			}
		}
	}
	want(next, created, started)
	cancel()

	n.crash(false)
	if rest := n.awaitRest(); rest != "" {
		t.Fatal(rest)
	}
	next, cancel = n.engine.Subscribe()
	defer cancel()
	if err := n.engine.StopSandbox(t.Context(), n.ids["web"]); err != nil {
		t.Fatal(err)
	}
	want(next, stopped)
	if err := n.engine.RemoveSandbox(t.Context(), n.ids["web"]); err != nil {
		t.Fatal(err)
	}
	want(next, deleted)
	if more := drainFeed(t, next); len(more) != 0 {
		t.Errorf("more events: %v", more)
	}
	n.finish()
}
