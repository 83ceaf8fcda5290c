package cli

import (
	"context"
	"errors"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The end of a container is noticed by its event, not by asking again and again.
func TestWatchEnd(t *testing.T) {
	c := newCanned()
	a := &app{endpoint: c.serve(t), timeout: time.Minute, now: time.Now}
	err := a.with(t.Context(), func(ctx context.Context, n *node) error {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		w := n.watchEnd(ctx, idNginx)
		c.mu.Lock()
		c.statuses[idNginx].State = runtimeapi.ContainerState_CONTAINER_EXITED
		c.statuses[idNginx].ExitCode = 5
		c.mu.Unlock()
		c.events <- &runtimeapi.ContainerEventResponse{ContainerId: idNginx}
		<-w.ended
		st, err := w.wait()
		if err != nil || st.ExitCode != 5 {
			t.Errorf("ended with %v (%v), want code 5", st, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A runtime that sends no events is asked instead.
func TestWatchEndWithoutEvents(t *testing.T) {
	c := newCanned()
	c.events = nil
	a := &app{endpoint: c.serve(t), timeout: time.Minute, now: time.Now}
	err := a.with(t.Context(), func(ctx context.Context, n *node) error {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		w := n.watchEnd(ctx, idNginx)
		c.mu.Lock()
		c.statuses[idNginx].State = runtimeapi.ContainerState_CONTAINER_EXITED
		c.mu.Unlock()
		if _, err := w.wait(); err != nil {
			t.Error(err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestWatchEndGivesUp(t *testing.T) {
	c := newCanned()
	a := &app{endpoint: c.serve(t), timeout: time.Minute, now: time.Now}
	err := a.with(t.Context(), func(ctx context.Context, n *node) error {
		ctx, cancel := context.WithCancel(ctx)
		w := n.watchEnd(ctx, idNginx)
		cancel()
		if _, err := w.wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
		w = n.watchEnd(t.Context(), "gone")
		if _, err := w.wait(); err == nil {
			t.Error("a container that is not there has ended well")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
