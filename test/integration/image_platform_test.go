package integration

import (
	"runtime"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/imagefactory"
)

// TestImagePlatforms runs images of this machine whose configuration names no platform, or another one: through an index
// that names this node's platform without a warning, as a single image with one in the verbose status and in the log.
func TestImagePlatforms(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod()
	here := &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	for name, c := range map[string]struct {
		spec     imagefactory.Spec
		platform *ocispec.Platform // in an index; nil for a single image
		warns    bool
	}{
		"index-silent":  {imagefactory.Spec{NoPlatform: true}, here, false},
		"index-other":   {imagefactory.Spec{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}}, here, false},
		"single-silent": {imagefactory.Spec{NoPlatform: true}, nil, false},
		"single-other":  {imagefactory.Spec{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}}, nil, true},
	} {
		c.spec.Config.Labels = map[string]string{"case": name} // for an image ID of its own
		image, err := imagefactory.BusyboxWith(c.spec)
		if err != nil {
			t.Fatal(err)
		}
		if c.platform != nil {
			if image, err = imagefactory.IndexOf(imagefactory.Entry{Artifact: image, Platform: c.platform}); err != nil {
				t.Fatal(err)
			}
		}
		ref := n.Push(name, image)
		if _, err := pull(n, ref); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		container := p.Start([]string{"sleep", "1000"}, func(config *runtimeapi.ContainerConfig) { config.Image.Image = ref })
		equal(t, name+": output", container.Output("echo", "runs"), "runs")
		want := ""
		if c.warns {
			want = "image.image"
		}
		equal(t, name+": warnings", fields(containerWarnings(t, n, container.ID)), want)
		logged := linesWith(n.Log(), "image of another platform pulled", "linux/s390x", ref)
		equal(t, name+": lines in the log about the pull", len(logged), strings.Count(want, "image.image"))
	}
}
