package cri

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/warning"
)

// CreateContainer prepares a container in a sandbox that is READY.
func (s *runtimeService) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	switch {
	case req.GetPodSandboxId() == "":
		return nil, invalid("pod_sandbox_id", "missing")
	case req.GetConfig() == nil:
		return nil, invalid("config", "missing")
	case req.GetConfig().GetMetadata() == nil:
		return nil, invalid("config.metadata", "missing")
	case req.GetConfig().GetImage().GetImage() == "":
		return nil, invalid("config.image.image", "missing")
	}
	id, err := s.Engine.CreateContainer(ctx, req.GetPodSandboxId(), req.GetConfig(), req.GetSandboxConfig())
	if err != nil {
		return nil, createError(err)
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// createError tells kubelet in its own word that an image could not be mounted:
// the text must begin with it.
func createError(err error) error {
	if _, ok := errors.AsType[*pod.ImageVolumeError](err); !ok {
		return err
	}
	s := status.Convert(statusOf(err))
	return status.Error(s.Code(), crierrors.ErrImageVolumeMountFailed.Error()+": "+s.Message())
}

// StartContainer starts a container that was created and never started.
func (s *runtimeService) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if req.GetContainerId() == "" {
		return nil, invalid("container_id", "missing")
	}
	if err := s.Engine.StartContainer(ctx, req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer stops a container, in the end by force. It succeeds for one
// that is not running or does not exist.
func (s *runtimeService) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if req.GetContainerId() == "" {
		return nil, invalid("container_id", "missing")
	}
	grace, err := seconds("timeout", max(req.GetTimeout(), 0)) // without time to end by itself, as for other runtimes
	if err != nil {
		return nil, err
	}
	if err := s.Engine.StopContainer(ctx, req.GetContainerId(), grace); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, running or not. It succeeds for one
// that does not exist.
func (s *runtimeService) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	id := req.GetContainerId()
	if id == "" {
		return nil, invalid("container_id", "missing")
	}
	if view, err := s.Engine.Container(id); err == nil {
		id = view.ID
	}
	if err := s.Engine.RemoveContainer(ctx, id); err != nil {
		return nil, err
	}
	s.Sessions.End(id)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ContainerStatus answers from memory what is known of a container.
func (s *runtimeService) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	if req.GetContainerId() == "" {
		return nil, invalid("container_id", "missing")
	}
	view, err := s.Engine.Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(view)}
	if !req.GetVerbose() {
		return fitReply(ctx, s.Server, "ContainerStatus", resp), nil
	}
	resp.Info, err = verbose(map[string]any{"info": containerInfo(view)})
	return fitReply(ctx, s.Server, "ContainerStatus", resp), err
}

// ListContainers answers from memory which containers match.
func (s *runtimeService) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: fitList(ctx, s.Server, "ListContainers", s.listContainers(req.GetFilter()))}, nil
}

// StreamContainers is ListContainers in messages of a bounded size.
func (s *runtimeService) StreamContainers(req *runtimeapi.StreamContainersRequest, to runtimeapi.RuntimeService_StreamContainersServer) error {
	return inBatches(s.listContainers(req.GetFilter()), func(batch []*runtimeapi.Container) error {
		return to.Send(&runtimeapi.StreamContainersResponse{Containers: fitList(to.Context(), s.Server, "StreamContainers", batch)})
	})
}

func (s *runtimeService) listContainers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	filter := pod.Filter{ID: f.GetId(), SandboxID: f.GetPodSandboxId(), Labels: f.GetLabelSelector()}
	if f.GetState() != nil {
		filter.ContainerState = &f.State.State
	}
	views := s.Engine.Containers(filter)
	items := make([]*runtimeapi.Container, 0, len(views))
	for _, v := range views {
		items = append(items, &runtimeapi.Container{
			Id:           v.ID,
			PodSandboxId: v.SandboxID,
			Metadata:     v.Config.GetMetadata(),
			Image:        v.Config.GetImage(),
			ImageRef:     v.ImageRef,
			ImageId:      v.ImageID,
			State:        v.State,
			CreatedAt:    v.CreatedAt.UnixNano(),
			Labels:       v.Config.GetLabels(),
			Annotations:  v.Config.GetAnnotations(),
		})
	}
	return items
}

// UpdateContainerResources changes the limits of a container. What is zero or
// missing stays as it is.
func (s *runtimeService) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if req.GetContainerId() == "" {
		return nil, invalid("container_id", "missing")
	}
	limits := req.GetLinux()
	if limits == nil {
		limits = &runtimeapi.LinuxContainerResources{}
	}
	if err := s.Engine.UpdateContainer(ctx, req.GetContainerId(), limits); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog goes on in a new file at the same path, after the old one
// was renamed. After an error there is no new file.
func (s *runtimeService) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if req.GetContainerId() == "" {
		return nil, invalid("container_id", "missing")
	}
	if err := s.Engine.ReopenLog(ctx, req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// statusesOf answers the statuses of several containers.
func (s *Server) statusesOf(views []*pod.Container) []*runtimeapi.ContainerStatus {
	statuses := make([]*runtimeapi.ContainerStatus, 0, len(views))
	for _, v := range views {
		statuses = append(statuses, s.containerStatus(v))
	}
	return statuses
}

// containerStatus is what the CRI calls a container's status.
func (s *Server) containerStatus(v *pod.Container) *runtimeapi.ContainerStatus {
	return &runtimeapi.ContainerStatus{
		Id:          v.ID,
		Metadata:    v.Config.GetMetadata(),
		State:       v.State,
		CreatedAt:   v.CreatedAt.UnixNano(),
		StartedAt:   unixNano(v.StartedAt),
		FinishedAt:  unixNano(v.FinishedAt),
		ExitCode:    v.ExitCode,
		Image:       s.shownImage(v),
		ImageRef:    v.ImageRef,
		ImageId:     v.ImageID,
		Reason:      v.Reason,
		Message:     v.Message,
		Labels:      v.Config.GetLabels(),
		Annotations: v.Config.GetAnnotations(),
		Mounts:      shownMounts(v),
		LogPath:     v.LogPath,
		Resources:   &runtimeapi.ContainerResources{Linux: v.Resources},
		User:        v.User,
		StopSignal:  v.StopSignal,
	}
}

// shownMounts are the mounts as they were asked for. Those of images say which
// one that is.
func shownMounts(v *pod.Container) []*runtimeapi.Mount {
	asked := v.Config.GetMounts()
	if len(v.VolumeImages) == 0 {
		return asked
	}
	shown := make([]*runtimeapi.Mount, len(asked))
	for i, m := range asked {
		shown[i] = m
		if id := v.VolumeImages[m.GetContainerPath()]; m.GetImage() != nil && id != "" {
			shown[i] = proto.CloneOf(m)
			shown[i].Image.ImageRef = id
		}
	}
	return shown
}

// shownImage is the image of a container as people know it: `kubectl get pod`
// shows this text. Kubelet creates containers by image ID, so what the user
// wrote comes first, then a tag.
func (s *Server) shownImage(v *pod.Container) *runtimeapi.ImageSpec {
	asked := v.Config.GetImage()
	name := asked.GetUserSpecifiedImage()
	if name == "" && strings.HasPrefix(asked.GetImage(), "sha256:") {
		if img, err := s.Images.Resolve(v.ImageID); err == nil && len(img.Tags) > 0 {
			name = img.Tags[0]
		}
	}
	if name == "" || name == asked.GetImage() {
		return asked
	}
	shown := proto.CloneOf(asked)
	shown.Image = name
	return shown
}

// containerInfo is what a verbose status adds: for people and their scripts.
func containerInfo(v *pod.Container) any {
	return struct {
		SandboxID   string                      `json:"sandboxID"`
		PID         int                         `json:"pid"`
		Handler     string                      `json:"runtimeHandler,omitempty"`
		CgroupPath  string                      `json:"cgroupPath"`
		SnapshotKey string                      `json:"snapshotKey"`
		Stage       *stage                      `json:"stage,omitempty"`
		Warnings    warning.List                `json:"warnings,omitempty"`
		Defaults    map[string]string           `json:"defaults,omitempty"`
		Config      *runtimeapi.ContainerConfig `json:"config"`
	}{v.SandboxID, v.PID, v.Handler, v.CgroupPath, v.SnapshotKey, stageOf(v.Stage, v.StageSince), v.Warnings, v.Defaults, v.Config}
}

// unixNano is how the CRI writes a time; what has not happened is 0.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
