package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListMetricDescriptors describes the metrics that this host gives. Kubelet
// asks once, at its start.
func (s *runtimeService) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: s.Engine.MetricDescriptors()}, nil
}

// ListPodSandboxMetrics answers the metrics of every ready pod.
func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	metrics, err := s.Engine.ListSandboxMetrics(ctx)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: s.fitMetricsList(ctx, "ListPodSandboxMetrics", metrics)}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in messages of a bounded
// size: a node of several hundred containers has more to say than the one
// message of 16 MiB that kubelet takes.
func (s *runtimeService) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, to runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	metrics, err := s.Engine.ListSandboxMetrics(to.Context())
	if err != nil {
		return err
	}
	return inBatches(metrics, func(batch []*runtimeapi.PodSandboxMetrics) error {
		return to.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: s.fitMetricsList(to.Context(), "StreamPodSandboxMetrics", batch)})
	})
}
