package pod

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestStopSignalIsSentAgain: a stop whose signal could not be sent is repeated, and the second one sends it: it does
// not wait for the whole grace of a container that was never asked to end.
func TestStopSignalIsSentAgain(t *testing.T) {
	n := newNode(t)
	n.started("web", "app")
	first, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	n.shim.deaf = giveUp
	if err := n.engine.StopContainer(first, n.ids["app"], time.Hour); !errors.Is(err, context.Canceled) {
		t.Fatalf("stop of a container that hears nothing: %v, want that it was given up", err)
	}
	again, cancelAgain := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancelAgain()
	if err := n.engine.StopContainer(again, n.ids["app"], time.Hour); err != nil {
		t.Errorf("stop again: %v", err)
	}
	n.clean(t.Context())
	n.finish()
}
