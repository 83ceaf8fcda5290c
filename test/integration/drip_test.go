package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/registry"
)

// noisy is an image of so many layers that compression leaves as they are.
func noisy(t *testing.T, seed uint64, layers int) *imagefactory.Artifact {
	t.Helper()
	var spec imagefactory.Spec
	random := rand.NewChaCha8([32]byte{byte(seed)})
	for i := range layers {
		content := make([]byte, 128<<10)
		if _, err := random.Read(content); err != nil {
			t.Fatal(err)
		}
		spec.Layers = append(spec.Layers, imagefactory.Layer{Files: []imagefactory.File{{Path: fmt.Sprint("file", i), Content: content}}})
	}
	image, err := imagefactory.Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// TestDrippingImagesHoldUpNoOther: the layers of two images drip and have all download slots. Images of another registry
// and of the same one are pulled meanwhile, also one that has a layer which drips.
func TestDrippingImagesHoldUpNoOther(t *testing.T) {
	const slots = 2
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		c.Image.MaxConcurrentDownloads, c.Image.MinBytesPerSecond = slots, 0
	}})
	proxy := registry.RunProxy(t, n.Registry.Host)
	trust(t, n, proxy.Host)
	var dripping []*imagefactory.Artifact
	var faults []registry.Fault
	for i := range 2 {
		image := noisy(t, uint64(i), slots)
		imagefactory.MustPush(t, n.Registry.Host, fmt.Sprint("drip", i, ":1"), image)
		for _, layer := range image.Layers {
			faults = append(faults, registry.Fault{Method: "GET", Path: fmt.Sprint("/drip", i, "/blobs/", layer.Digest), Rate: 20})
		}
		dripping = append(dripping, image)
	}
	proxy.Inject(faults...)

	ctx, cancel := context.WithCancel(n.Context())
	defer cancel()
	ended := make(chan error, len(dripping))
	for i := range dripping {
		go func() {
			_, err := n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: fmt.Sprint(proxy.Host, "/drip", i, ":1")}})
			ended <- err
		}()
	}
	n.Eventually("layers of both images drip in all slots", func() error {
		all := 0
		for i, image := range dripping {
			begun := 0
			for _, layer := range image.Layers {
				begun += proxy.Count("GET", fmt.Sprint("/drip", i, "/blobs/", layer.Digest))
			}
			if begun == 0 {
				return fmt.Errorf("no layer of image %d was asked for", i)
			}
			all += begun
		}
		if all < slots {
			return fmt.Errorf("%d layers were asked for", all)
		}
		return nil
	})
	imagefactory.MustPush(t, n.Registry.Host, "shares:1", dripping[0])
	imagefactory.MustPush(t, n.Registry.Host, "other:1", noisy(t, 7, 3))
	imagefactory.MustPush(t, n.Registry.Host, "same:1", noisy(t, 8, 3))
	for _, ref := range []string{n.Registry.Host + "/other:1", proxy.Host + "/same:1", n.Registry.Host + "/shares:1"} {
		if _, err := pull(n, ref); err != nil {
			t.Errorf("pull %s: %v", ref, err)
		}
		select {
		case err := <-ended:
			t.Fatalf("a pull that should drip ended while %s was pulled: %v", ref, err)
		default:
		}
	}
	cancel()
	for range dripping {
		wantError(t, <-ended, codes.Canceled)
	}
}
