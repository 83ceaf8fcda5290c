package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod"
)

// ContainerStats answers the figures of one container.
func (s *runtimeService) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	if req.GetContainerId() == "" {
		return nil, invalid("container_id", "missing")
	}
	figures, err := s.Engine.ContainerStats(ctx, req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: fitReply(ctx, s.Server, "ContainerStats", figures)}, nil
}

// ListContainerStats answers the figures of the running containers that match.
func (s *runtimeService) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	figures, err := s.Engine.ListContainerStats(ctx, containerStatsFilter(req.GetFilter()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: fitList(ctx, s.Server, "ListContainerStats", figures)}, nil
}

// StreamContainerStats is ListContainerStats in messages of a bounded size.
func (s *runtimeService) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, to runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	figures, err := s.Engine.ListContainerStats(to.Context(), containerStatsFilter(req.GetFilter()))
	if err != nil {
		return err
	}
	return inBatches(figures, func(batch []*runtimeapi.ContainerStats) error {
		return to.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: fitList(to.Context(), s.Server, "StreamContainerStats", batch)})
	})
}

func containerStatsFilter(f *runtimeapi.ContainerStatsFilter) pod.Filter {
	return pod.Filter{ID: f.GetId(), SandboxID: f.GetPodSandboxId(), Labels: f.GetLabelSelector()}
}

// PodSandboxStats answers the figures of one pod. Kubelet asks for the empty ID
// to find out whether the call is there at all.
func (s *runtimeService) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	if req.GetPodSandboxId() == "" {
		return nil, invalid("pod_sandbox_id", "missing")
	}
	figures, err := s.Engine.SandboxStats(ctx, req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: fitReply(ctx, s.Server, "PodSandboxStats", figures)}, nil
}

// ListPodSandboxStats answers the figures of the pods that match.
func (s *runtimeService) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	figures, err := s.Engine.ListSandboxStats(ctx, sandboxStatsFilter(req.GetFilter()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: fitList(ctx, s.Server, "ListPodSandboxStats", figures)}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in messages of a bounded size.
func (s *runtimeService) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, to runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	figures, err := s.Engine.ListSandboxStats(to.Context(), sandboxStatsFilter(req.GetFilter()))
	if err != nil {
		return err
	}
	return inBatches(figures, func(batch []*runtimeapi.PodSandboxStats) error {
		return to.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: fitList(to.Context(), s.Server, "StreamPodSandboxStats", batch)})
	})
}

func sandboxStatsFilter(f *runtimeapi.PodSandboxStatsFilter) pod.Filter {
	return pod.Filter{ID: f.GetId(), Labels: f.GetLabelSelector()}
}
