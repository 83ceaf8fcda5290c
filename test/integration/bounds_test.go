package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/imagefactory"
)

// TestPodDoesNotHideOthers: an interface whose name is not UTF-8 stays a matter of the pod that renamed it.
func TestPodDoesNotHideOthers(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	ordinary := n.RunPod()
	ordinary.Start([]string{"sleep", "1000"})
	hostile := n.RunPod()
	c := hostile.Start([]string{"sleep", "1000"}, func(config *runtimeapi.ContainerConfig) {
		config.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}},
		}}
	})
	c.Output("sh", "-c", `ip link set eth0 down && ip link set eth0 name "$(printf 'bad\377\033')"`)

	stats, err := n.Runtime.ListPodSandboxStats(n.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(stats.GetStats()) != 2 {
		t.Fatalf("stats of %d pods, want 2: %v", len(stats.GetStats()), err)
	}
	renamed := slices.ContainsFunc(stats.GetStats(), func(s *runtimeapi.PodSandboxStats) bool {
		list := s.GetLinux().GetNetwork().GetInterfaces()
		return len(list) == 1 && list[0].GetName() == "bad\\xff\x1b"
	})
	if !renamed {
		t.Errorf("no pod has the interface, with its name escaped: %v", stats)
	}
	metrics, err := n.Runtime.ListPodSandboxMetrics(n.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(metrics.GetPodMetrics()) != 2 {
		t.Errorf("metrics of %d pods, want 2: %v", len(metrics.GetPodMetrics()), err)
	}
}

// TestLargeRequestsEndSoon: a container with 40,000 variables is created within the time of an ordinary
// request, and lists above the limits are refused by name.
func TestLargeRequestsEndSoon(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	pod := n.RunPod()
	c := pod.Start([]string{"sh", "-c", "set | grep -c ^VARIABLE_ >/count; sleep 1000"}, func(config *runtimeapi.ContainerConfig) {
		for i := range 40_000 {
			config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: fmt.Sprintf("VARIABLE_%d", i), Value: []byte("v")})
		}
	})
	n.Eventually("the process has every variable", func() error {
		if got := strings.TrimSpace(c.Output("cat", "/count")); got != "40000" {
			return fmt.Errorf("it has %q", got)
		}
		return nil
	})
	config := n.ContainerConfig([]string{"true"})
	config.Envs = make([]*runtimeapi.KeyValue, 100_001)
	for i := range config.Envs {
		config.Envs[i] = &runtimeapi.KeyValue{Key: "A"}
	}
	_, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `envs "with 100001 entries": has more than 100000`) {
		t.Errorf("too many variables: %v", err)
	}
}

// TestListsFitKubelet: images and pods with megabytes of annotations are listed within what kubelet accepts.
func TestListsFitKubelet(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	huge := strings.Repeat("x", 1<<20)
	for range 17 {
		n.RunPod(func(config *runtimeapi.PodSandboxConfig) {
			config.Annotations = map[string]string{"example.com/huge": huge}
		})
	}
	for i := range 5 {
		artifact, err := imagefactory.BuildBundle(imagefactory.Bundle{
			Type: "application/vnd.example.test", Blobs: []imagefactory.Blob{{MediaType: "text/plain", Content: []byte("x"), Title: "x"}},
			Annotations: map[string]string{"number": fmt.Sprint(i), "huge": strings.Repeat(huge, 3)},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pull(n, n.Push(fmt.Sprintf("huge%d", i), artifact)); err != nil {
			t.Fatal(err)
		}
	}
	images, err := n.Images.ListImages(n.Context(), &runtimeapi.ListImagesRequest{}, grpc.MaxCallRecvMsgSize(16<<20))
	if err != nil || len(images.GetImages()) < 5 {
		t.Errorf("%d images, want 5 at least: %v", len(images.GetImages()), err)
	}
	for _, i := range images.GetImages() {
		if annotations := i.GetSpec().GetAnnotations(); len(annotations["huge"]) > 0 {
			t.Errorf("image %s shows megabytes of annotations", i.GetId())
		}
	}
	answer, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{}, grpc.MaxCallRecvMsgSize(16<<20))
	if err != nil || len(answer.GetItems()) != 17 {
		t.Errorf("%d pods, want 17: %v", len(answer.GetItems()), err)
	}
}
