package cri

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/warning"
)

// RunPodSandbox makes a pod's sandbox; on success it is READY.
func (s *runtimeService) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if req.GetConfig() == nil {
		return nil, invalid("config", "missing")
	}
	if req.GetConfig().GetMetadata() == nil {
		return nil, invalid("config.metadata", "missing")
	}
	id, err := s.Engine.RunSandbox(ctx, req.GetConfig(), req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox ends everything of a pod and gives its addresses back. It
// succeeds for a sandbox that is stopped or does not exist.
func (s *runtimeService) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if req.GetPodSandboxId() == "" {
		return nil, invalid("pod_sandbox_id", "missing")
	}
	id := s.wholeSandboxID(req.GetPodSandboxId())
	if err := s.Engine.StopSandbox(ctx, id); err != nil {
		return nil, err
	}
	s.Sessions.End(id)
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes a sandbox and its containers, running or not. It
// succeeds for a sandbox that does not exist.
func (s *runtimeService) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if req.GetPodSandboxId() == "" {
		return nil, invalid("pod_sandbox_id", "missing")
	}
	id := s.wholeSandboxID(req.GetPodSandboxId())
	containers := s.Engine.Containers(pod.Filter{SandboxID: id})
	if err := s.Engine.RemoveSandbox(ctx, id); err != nil {
		return nil, err
	}
	s.Sessions.End(id)
	for _, c := range containers {
		s.Sessions.End(c.ID)
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// wholeSandboxID completes a prefix, as sessions are known by whole IDs. What
// is not known stays as it is; the engine decides what that means.
func (s *Server) wholeSandboxID(id string) string {
	if view, err := s.Engine.Sandbox(id); err == nil {
		return view.ID
	}
	return id
}

// PodSandboxStatus answers from memory what is known of a sandbox and of all
// its containers.
func (s *runtimeService) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	if req.GetPodSandboxId() == "" {
		return nil, invalid("pod_sandbox_id", "missing")
	}
	// Taken before the views are read: what they show is at least as new.
	at := time.Now()
	view, err := s.Engine.Sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{
		Status:             sandboxStatus(view),
		ContainersStatuses: s.statusesOf(s.Engine.Containers(pod.Filter{SandboxID: view.ID})),
		Timestamp:          at.UnixNano(),
	}
	if !req.GetVerbose() {
		return fitReply(ctx, s.Server, "PodSandboxStatus", resp), nil
	}
	resp.Info, err = verbose(map[string]any{"info": sandboxInfo(view)})
	return fitReply(ctx, s.Server, "PodSandboxStatus", resp), err
}

// ListPodSandbox answers from memory which sandboxes match.
func (s *runtimeService) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: fitList(ctx, s.Server, "ListPodSandbox", s.listSandboxes(req.GetFilter()))}, nil
}

// StreamPodSandboxes is ListPodSandbox in messages of a bounded size.
func (s *runtimeService) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, to runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	return inBatches(s.listSandboxes(req.GetFilter()), func(batch []*runtimeapi.PodSandbox) error {
		return to.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: fitList(to.Context(), s.Server, "StreamPodSandboxes", batch)})
	})
}

func (s *runtimeService) listSandboxes(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	filter := pod.Filter{ID: f.GetId(), Labels: f.GetLabelSelector()}
	if f.GetState() != nil {
		filter.SandboxState = &f.State.State
	}
	views := s.Engine.Sandboxes(filter)
	items := make([]*runtimeapi.PodSandbox, 0, len(views))
	for _, v := range views {
		items = append(items, &runtimeapi.PodSandbox{
			Id:             v.ID,
			Metadata:       v.Config.GetMetadata(),
			State:          v.State,
			CreatedAt:      v.CreatedAt.UnixNano(),
			Labels:         v.Config.GetLabels(),
			Annotations:    v.Config.GetAnnotations(),
			RuntimeHandler: v.Handler,
		})
	}
	return items
}

// UpdatePodSandboxResources records what kubelet gives to the pod as a whole.
func (s *runtimeService) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if req.GetPodSandboxId() == "" {
		return nil, invalid("pod_sandbox_id", "missing")
	}
	if err := s.Engine.UpdateSandbox(ctx, req.GetPodSandboxId(), req.GetOverhead(), req.GetResources()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// sandboxStatus is what the CRI calls a sandbox's status.
func sandboxStatus(v *pod.Sandbox) *runtimeapi.PodSandboxStatus {
	status := &runtimeapi.PodSandboxStatus{
		Id:        v.ID,
		Metadata:  v.Config.GetMetadata(),
		State:     v.State,
		CreatedAt: v.CreatedAt.UnixNano(),
		Network:   &runtimeapi.PodSandboxNetworkStatus{},
		// Kubelet recreates the pod if this differs from its request.
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: v.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
		Labels:         v.Config.GetLabels(),
		Annotations:    v.Config.GetAnnotations(),
		RuntimeHandler: v.Handler,
	}
	for i, ip := range v.IPs {
		if i == 0 {
			status.Network.Ip = ip
			continue
		}
		status.Network.AdditionalIps = append(status.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
	}
	return status
}

// stage is an operation in flight, for people.
type stage struct {
	Name string `json:"name"`
	Age  string `json:"age"`
}

func stageOf(name string, since time.Time) *stage {
	if name == "" {
		return nil
	}
	return &stage{Name: name, Age: time.Since(since).Round(time.Millisecond).String()}
}

// sandboxInfo is what a verbose status adds: for people and their scripts.
func sandboxInfo(v *pod.Sandbox) any {
	return struct {
		PID          int                                 `json:"pid"`
		NetNS        string                              `json:"networkNamespace,omitempty"`
		CgroupParent string                              `json:"cgroupParent"`
		Overhead     *runtimeapi.LinuxContainerResources `json:"overhead,omitempty"`
		Resources    *runtimeapi.LinuxContainerResources `json:"resources,omitempty"`
		Problem      string                              `json:"problem,omitempty"`
		Stage        *stage                              `json:"stage,omitempty"`
		Warnings     warning.List                        `json:"warnings,omitempty"`
		Defaults     map[string]string                   `json:"defaults,omitempty"`
		Config       *runtimeapi.PodSandboxConfig        `json:"config"`
	}{v.PID, v.NetNS, v.CgroupParent, v.Overhead, v.Resources, v.Problem, stageOf(v.Stage, v.StageSince), v.Warnings, v.Defaults, v.Config}
}
