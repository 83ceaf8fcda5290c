package cli

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// askInterval is how often a container is looked at where the runtime
	// sends no events.
	askInterval = 250 * time.Millisecond
	// sureInterval is the same where it does: events may be dropped.
	sureInterval = 2 * time.Second
)

// endWatch waits for the end of one container.
type endWatch struct {
	// ended is closed once the container has ended, or nothing can be learned
	// about it any more.
	ended chan struct{}

	group  sync.WaitGroup
	status *runtimeapi.ContainerStatus
	err    error
}

// watchEnd begins to wait for the end of a container, until ctx ends.
func (n *node) watchEnd(ctx context.Context, id string) *endWatch {
	w := &endWatch{ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan bool, 1)
	w.group.Go(func() { n.events(ctx, id, events) })
	w.group.Go(func() {
		defer close(w.ended)
		defer cancel()
		w.status, w.err = n.awaitEnd(ctx, id, events)
	})
	return w
}

// wait returns how the container ended.
func (w *endWatch) wait() (*runtimeapi.ContainerStatus, error) {
	w.group.Wait()
	return w.status, w.err
}

// awaitEnd looks at the container whenever there is reason to.
func (n *node) awaitEnd(ctx context.Context, id string, events <-chan bool) (*runtimeapi.ContainerStatus, error) {
	interval := sureInterval
	for {
		st, err := n.containerStatus(ctx, id)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil && !temporary(err) {
			return nil, err
		}
		if st.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			return st, nil
		}
		if err != nil {
			interval = askInterval // a daemon that restarts has ended our stream too
		}
		timer := time.NewTimer(interval)
		select {
		case _, ok := <-events:
			if !ok {
				interval, events = askInterval, nil
			}
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// temporary says whether a runtime may be asked again: containers outlive a
// restart of berthd, and so does waiting for them.
func temporary(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	}
	return false
}

// events tells that something happened to the container, and is closed if
// that cannot be learned.
func (n *node) events(ctx context.Context, id string, events chan<- bool) {
	defer close(events)
	stream, err := n.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	for err == nil {
		var event *runtimeapi.ContainerEventResponse
		event, err = stream.Recv()
		if event.GetContainerId() != id {
			continue
		}
		select {
		case events <- true:
		default: // there is one to be looked at already
		}
	}
}
