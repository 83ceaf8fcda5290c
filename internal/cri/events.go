package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod"
)

// GetContainerEvents delivers what happens to containers and sandboxes until
// the client goes or the daemon stops. It does not end on its own, for kubelet
// counts an end as a failure and gives up after a few, unless the client has
// stopped reading: then an error is all that can tell it what it missed.
func (s *runtimeService) GetContainerEvents(_ *runtimeapi.GetEventsRequest, to runtimeapi.RuntimeService_GetContainerEventsServer) error {
	next, cancel := s.Engine.Subscribe()
	defer cancel()
	// A client that waits for the header misses nothing from then on.
	if err := to.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(to.Context())
	defer stop()
	go func() {
		defer stop()
		select {
		case <-s.stopping:
		case <-ctx.Done():
		}
	}()
	for {
		event, err := next(ctx)
		if err != nil {
			return s.endOfEvents(to.Context(), err)
		}
		if err := to.Send(fitReply(ctx, s.Server, "GetContainerEvents", s.eventResponse(event))); err != nil {
			return err
		}
	}
}

// endOfEvents says why there are no more events.
func (s *Server) endOfEvents(client context.Context, err error) error {
	if client.Err() != nil || !s.isStopping() {
		return err
	}
	return fmt.Errorf("deliver events: the daemon is stopping: %w", errdefs.ErrUnavailable)
}

// eventResponse is an event with the statuses at its time.
func (s *Server) eventResponse(event pod.Event) *runtimeapi.ContainerEventResponse {
	resp := &runtimeapi.ContainerEventResponse{
		ContainerId:        event.ContainerID,
		ContainerEventType: event.Type,
		CreatedAt:          event.At.UnixNano(),
		ContainersStatuses: s.statusesOf(event.Containers),
	}
	if event.Sandbox != nil {
		resp.PodSandboxStatus = sandboxStatus(event.Sandbox)
	}
	return resp
}
