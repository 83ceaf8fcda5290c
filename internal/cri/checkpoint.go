package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod"
)

// CheckpointContainer writes a running container down, which goes on.
func (s *runtimeService) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	switch {
	case req.GetContainerId() == "":
		return nil, invalid("container_id", "missing")
	case req.GetLocation() == "":
		return nil, invalid("location", "missing")
	}
	timeout, err := seconds("timeout", req.GetTimeout())
	if err != nil {
		return nil, err
	}
	if err := s.Engine.CheckpointContainer(ctx, req.GetContainerId(), req.GetLocation(), timeout); err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

// CheckpointPod writes the running containers of a pod down, which go on.
func (s *runtimeService) CheckpointPod(ctx context.Context, req *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	switch {
	case req.GetPodSandboxId() == "":
		return nil, invalid("pod_sandbox_id", "missing")
	case req.GetOutputPath() == "":
		return nil, invalid("output_path", "missing")
	}
	err := s.Engine.CheckpointSandbox(ctx, req.GetPodSandboxId(), req.GetOutputPath(), req.GetContainerIds(), req.GetOptions())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointPodResponse{}, nil
}

// RestorePod makes a pod whose containers, once started, go on from a checkpoint.
func (s *runtimeService) RestorePod(ctx context.Context, req *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	switch {
	case req.GetCheckpointPath() == "":
		return nil, invalid("checkpoint_path", "missing")
	case req.GetConfig() == nil:
		return nil, invalid("config", "missing")
	case req.GetConfig().GetMetadata() == nil:
		return nil, invalid("config.metadata", "missing")
	case len(req.GetContainerConfigs()) == 0:
		return nil, invalid("container_configs", "missing")
	}
	id, containers, err := s.Engine.RestoreSandbox(ctx, pod.Restore{
		Path: req.GetCheckpointPath(), Config: req.GetConfig(), Handler: req.GetRuntimeHandler(),
		Containers: req.GetContainerConfigs(), Options: req.GetOptions(),
	})
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.RestorePodResponse{PodSandboxId: id}
	for _, cfg := range req.GetContainerConfigs() {
		name := cfg.GetMetadata().GetName()
		resp.RestoredContainers = append(resp.RestoredContainers, &runtimeapi.RestoredContainer{Name: name, ContainerId: containers[name]})
	}
	return resp, nil
}
