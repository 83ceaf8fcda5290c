package cri

import (
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod"
)

// eventBuffer is how many events one client may lag behind. Events are hints
// to look again, so one that is further behind may miss some.
const eventBuffer = 1024

// GetContainerEvents delivers what happens to containers until the client goes
// or the daemon stops. It never ends on its own: kubelet counts an end as a
// failure and gives up after a few.
func (s *runtimeService) GetContainerEvents(_ *runtimeapi.GetEventsRequest, to runtimeapi.RuntimeService_GetContainerEventsServer) error {
	events, cancel := s.Engine.Subscribe(eventBuffer)
	defer cancel()
	for {
		select {
		case event, ok := <-events:
			if !ok {
				return errStopping()
			}
			if err := to.Send(s.eventResponse(event)); err != nil {
				return err
			}
		case <-to.Context().Done():
			return to.Context().Err()
		case <-s.stopping:
			return errStopping()
		}
	}
}

func errStopping() error {
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
