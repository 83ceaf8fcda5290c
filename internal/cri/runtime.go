package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/nri"
	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
)

const (
	// runtimeName begins the container IDs that Kubernetes shows.
	runtimeName = "berth"
	// runtimeAPIVersion is the version of the CRI that is served.
	runtimeAPIVersion = "v1"
	// kubeletAPIVersion is what every runtime answers; kubelet wants something here.
	kubeletAPIVersion = "0.1.0"
)

// Version answers who serves. Kubelet asks first of all and wants every field.
func (s *runtimeService) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           kubeletAPIVersion,
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.Server.Version,
		RuntimeApiVersion: runtimeAPIVersion,
	}, nil
}

// Status answers from memory whether pods can run now and what they may ask for. Only a verbose one may have CRIU asked.
func (s *runtimeService) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	found := s.Engine.Handlers()
	fallback := s.Engine.DefaultHandler()
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			runtimeReady(fallback, found), s.networkReady(),
		}},
		// Kubelet looks up the default handler by the empty name.
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{handlerFeatures("", found[fallback])},
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		features := handlerFeatures(name, found[name])
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, features)
		// It takes no more than a user namespace at all.
		resp.Features.UserNamespacesHostNetwork = resp.Features.UserNamespacesHostNetwork || features.GetFeatures().GetUserNamespaces()
	}
	if !req.GetVerbose() {
		return resp, nil
	}
	var plugins nri.State
	if s.Plugins != nil {
		plugins = s.Plugins()
	}
	info, err := verbose(map[string]any{
		"config": s.Config, "handlers": found, "defaultHandler": fallback, "nri": plugins, "checkpoints": s.checkpoints(ctx, found),
	})
	if err != nil {
		return nil, err
	}
	resp.Info = info
	return fitReply(ctx, s.Server, "Status", resp), nil
}

// checkpoints is what a verbose status says about them.
type checkpoints struct {
	// Handlers are those whose OCI runtime drives CRIU.
	Handlers []string `json:"handlers"`
	// Problem is why they cannot be made all the same, "" if they can.
	Problem string `json:"problem"`
}

func (s *runtimeService) checkpoints(ctx context.Context, found map[string]handlers.Info) checkpoints {
	c := checkpoints{Handlers: []string{}}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if info := found[name]; info.Problem == "" && info.Features.Checkpoint {
			c.Handlers = append(c.Handlers, name)
		}
	}
	if len(c.Handlers) == 0 {
		c.Problem = "the OCI runtime of no handler that works is made for CRIU"
	} else if err := s.CheckCRIU(ctx); err != nil {
		c.Problem = err.Error()
	}
	return c
}

func runtimeReady(fallback string, found map[string]handlers.Info) *runtimeapi.RuntimeCondition {
	condition := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	info, ok := found[fallback]
	switch {
	case !ok:
		condition.Status, condition.Reason = false, "NoDefaultHandler"
		condition.Message = fmt.Sprintf("the default runtime handler %q is not configured", fallback)
	case info.Problem != "":
		condition.Status, condition.Reason = false, "HandlerNotUsable"
		condition.Message = fmt.Sprintf("runtime handler %q: %s", fallback, info.Problem)
	}
	return condition
}

func (s *runtimeService) networkReady() *runtimeapi.RuntimeCondition {
	condition := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.Engine.NetworkReady(); err != nil {
		condition.Status, condition.Reason, condition.Message = false, "NetworkNotReady", oneLine(err)
	}
	return condition
}

// handlerFeatures says what pods of a handler may ask for; one that does not
// work offers nothing.
func handlerFeatures(name string, info handlers.Info) *runtimeapi.RuntimeHandler {
	usable := info.Problem == ""
	return &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
		RecursiveReadOnlyMounts: usable && info.Features.RecursiveReadOnly,
		UserNamespaces:          usable && info.Features.UserNamespaces,
	}}
}

// RuntimeConfig tells kubelet the cgroup driver. It does not change while the
// daemon runs.
func (s *runtimeService) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{
		Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: s.CgroupDriver},
	}, nil
}

// UpdateRuntimeConfig tells the network the pod range that kubelet announces.
func (s *runtimeService) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		if s.SawKubelet != nil {
			s.SawKubelet("pod range " + cidr)
		}
		if s.SetPodCIDR != nil {
			if err := s.SetPodCIDR(cidr); err != nil {
				return nil, err
			}
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// verbose makes the info of a response: each value as JSON.
func verbose(values map[string]any) (map[string]string, error) {
	info := make(map[string]string, len(values))
	for name, value := range values {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("show %s: %w", name, err)
		}
		info[name] = string(text)
	}
	return info, nil
}
