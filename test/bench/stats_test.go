package bench

import (
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// BenchmarkFigures measures what the calls that kubelet makes every ten seconds take on a node of a hundred pods, and how
// large the largest answer is: kubelet takes 16 MiB.
func BenchmarkFigures(b *testing.B) {
	const pods = 100
	n := harness.Start(b, harness.Options{})
	n.Pull()
	for range pods {
		n.RunPod(ownCgroup).Start([]string{"sleep", "1000"})
	}
	var s steps
	size := 0
	for b.Loop() {
		s.time("container-stats", func() {
			_, err := n.Runtime.ListContainerStats(n.Context(), &runtimeapi.ListContainerStatsRequest{})
			check(b, err)
		})
		s.time("pod-stats", func() {
			_, err := n.Runtime.ListPodSandboxStats(n.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
			check(b, err)
		})
		s.time("metrics", func() {
			answer, err := n.Runtime.ListPodSandboxMetrics(n.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
			check(b, err)
			size = proto.Size(answer)
		})
	}
	s.report(b)
	b.ReportMetric(float64(size)/pods/1024, "KiB-of-metrics/pod")
}

// ownCgroup gives a pod a cgroup of its own, as kubelet does: the processes of a pod are counted in it.
func ownCgroup(c *runtimeapi.PodSandboxConfig) {
	c.Linux.CgroupParent = filepath.Join(c.GetLinux().GetCgroupParent(), c.GetMetadata().GetName())
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
