package nri

import (
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDescribe: plugins learn what a spec says; what is unknown does not keep a container from being described.
func TestDescribe(t *testing.T) {
	c := Container{
		ID: "c", PodID: "p", State: runtimeapi.ContainerState_CONTAINER_EXITED, ExitCode: 3, CreatedAt: time.Unix(1, 2),
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "app"},
			Image:    &runtimeapi.ImageSpec{Image: "sha256:x", UserSpecifiedImage: "busybox:1"},
		},
		ImageID: "sha256:x", ImageDigest: "docker.io/library/busybox@sha256:y",
	}
	bare := c.message()
	if bare.GetName() != "app" || bare.GetState() != api.ContainerState_CONTAINER_STOPPED || bare.GetCreatedAt() != 1e9+2 || bare.GetStartedAt() != 0 {
		t.Errorf("a container without a spec is %v", bare)
	}
	if i := bare.GetImage(); i.GetName() != "busybox:1" || i.GetDigest() != "sha256:y" || i.GetConfigDigest() != "sha256:x" {
		t.Errorf("image is %v", i)
	}
	for _, s := range []*specs.Spec{{}, {Process: &specs.Process{}}, {Linux: &specs.Linux{}}, someSpec()} {
		c.Spec = s
		c.message()
	}
	full := c.message()
	if len(full.GetEnv()) != 3 || len(full.GetMounts()) != 2 || full.GetLinux().GetRdt().GetClosId().GetValue() != "old" {
		t.Errorf("a container is %v", full)
	}
	(Pod{}).message()
}
