package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

// TestPullErrorsForKubelet: kubelet reads the reason of a failed pull from the beginning of the text, and only if the
// code says nothing.
func TestPullErrorsForKubelet(t *testing.T) {
	dir := t.TempDir()
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) { c.Image.VerifierDir = dir }})
	write(t, filepath.Join(dir, "policy"), "#!/bin/sh\necho no signature for $2\nexit 1\n")
	if err := unix.Chmod(filepath.Join(dir, "policy"), 0o755); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		n.Image: "SignatureValidationFailed: ", "127.0.0.1:1/none:1": "RegistryUnavailable: ",
	} {
		_, err := pull(n, ref)
		if status.Code(err) != codes.Unknown || !strings.HasPrefix(status.Convert(err).Message(), want) {
			t.Errorf("pull %s: got %v, want code Unknown and a text that begins with %q", ref, err, want)
		}
	}
	_, err := pull(n, n.Image)
	wantError(t, err, codes.Unknown, "no signature for "+n.Image)
	_, err = n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: n.Image, RuntimeHandler: "none"},
	})
	wantError(t, err, codes.InvalidArgument, "image.runtime_handler", "none")
	if image := imageStatus(t, n, n.Image); image != nil {
		t.Errorf("a refused image is there: %v", image)
	}
}
