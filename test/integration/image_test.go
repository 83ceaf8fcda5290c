package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/registry"
)

func imageStatus(t *testing.T, n *harness.Node, ref string) *runtimeapi.Image {
	t.Helper()
	answer, err := n.Images.ImageStatus(n.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("get status of image %s: %v", ref, err)
	}
	return answer.GetImage()
}

func pull(n *harness.Node, ref string) (string, error) {
	answer, err := n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: ref},
		Auth:  &runtimeapi.AuthConfig{Username: n.Registry.Username, Password: n.Registry.Password},
	})
	return answer.GetImageRef(), err
}

// TestImageLife: an image is one thing under all its names, and goes under all of them.
func TestImageLife(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	id := n.Pull()
	image := imageStatus(t, n, n.Image)
	equal(t, "ID in the status", image.GetId(), id)
	if !slices.Equal(image.GetRepoTags(), []string{n.Image}) || len(image.GetRepoDigests()) != 1 {
		t.Fatalf("image has tags %v and digests %v, want its tag and one digest", image.GetRepoTags(), image.GetRepoDigests())
	}
	for _, alias := range []string{id, strings.TrimPrefix(id, "sha256:"), image.GetRepoDigests()[0]} {
		equal(t, "ID by "+alias, imageStatus(t, n, alias).GetId(), id)
	}
	again, err := pull(n, image.GetRepoDigests()[0])
	if err != nil || again != id {
		t.Errorf("pull by digest gives %s, %v, want %s", again, err, id)
	}
	usage, err := n.Images.ImageFsInfo(n.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if fs := usage.GetImageFilesystems(); len(fs) == 0 || fs[0].GetUsedBytes().GetValue() < image.GetSize()/2 || fs[0].GetTimestamp() <= 0 {
		t.Errorf("image file systems are %v, want the image in one", fs)
	}
	if _, err := n.Images.RemoveImage(n.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: id}}); err != nil {
		t.Fatal(err)
	}
	if left := imageStatus(t, n, n.Image); left != nil {
		t.Errorf("status after the removal is %v, want none", left)
	}
}

// TestRemoveImageInUse: a container goes on when its image is removed, and its status still says what it runs.
func TestRemoveImageInUse(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	c := n.RunPod().Start([]string{"sleep", "1000"})
	id := c.Status().GetImageId()
	if _, err := n.Images.RemoveImage(n.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: n.Image}}); err != nil {
		t.Fatal(err)
	}
	equal(t, "a command that was not run before", c.Output("basename", "/a/b"), "b")
	equal(t, "image ID in the status", c.Status().GetImageId(), id)
}

// TestAuthentication: with basic and with bearer authentication the right password pulls, a wrong one and none do not.
func TestAuthentication(t *testing.T) {
	for name, bearer := range map[string]bool{"basic": false, "bearer": true} {
		t.Run(name, func(t *testing.T) {
			n := harness.Start(t, harness.Options{Registry: registry.Options{Username: "me", Password: "secret", Bearer: bearer}})
			for _, auth := range []*runtimeapi.AuthConfig{nil, {Username: "me", Password: "wrong"}} {
				_, err := n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.Image}, Auth: auth})
				if err == nil {
					t.Errorf("pull with %v succeeds, want an error", auth)
				}
			}
			n.Pull()
		})
	}
}

// TestMirror: what hosts.toml names as a mirror is asked first, and the image has the name that was asked for.
func TestMirror(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	dir := filepath.Join(n.Config.Image.RegistryConfigDir, "registry.example")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := "server = \"https://registry.example\"\n[host.\"http://" + n.Registry.Host + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
	id, err := pull(n, "registry.example/busybox:1")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "ID by the name that was asked for", imageStatus(t, n, "registry.example/busybox:1").GetId(), id)
	equal(t, "ID from the registry itself", n.Pull(), id)
}

// TestMultiPlatform: of an index, the image of this platform is taken.
func TestMultiPlatform(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	own, err := imagefactory.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	index, err := imagefactory.WithDecoys(own)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pull(n, imagefactory.MustPush(t, n.Registry.Host, "many:1", index))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "image ID", id, n.Pull())
}

// TestPinned: an image that is configured as pinned says so.
func TestPinned(t *testing.T) {
	var host string
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		entries, err := os.ReadDir(c.Image.RegistryConfigDir)
		if err != nil || len(entries) != 1 {
			t.Fatalf("find the registry in %v: %v", entries, err)
		}
		host = entries[0].Name()
		c.Image.Pinned = []string{host + "/busybox:1"}
	}})
	n.Pull()
	if image := imageStatus(t, n, n.Image); !image.GetPinned() {
		t.Errorf("image is %v, want it pinned", image)
	}
}

// TestCancelledPull: a pull without a waiting caller ends, leaves nothing, and can be repeated.
func TestCancelledPull(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	proxy := registry.RunProxy(t, n.Registry.Host)
	proxy.Inject(registry.Fault{Method: "GET", Path: "/blobs/", Stall: 1000})
	trust(t, n, proxy.Host)
	ctx, cancel := context.WithTimeout(n.Context(), time.Second)
	defer cancel()
	_, err := n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: proxy.Host + "/busybox:1"}})
	wantError(t, err, codes.DeadlineExceeded)
	if image := imageStatus(t, n, proxy.Host+"/busybox:1"); image != nil {
		t.Errorf("image after the cancelled pull is %v, want none", image)
	}
	n.Eventually("the space is free again", func() error {
		usage, err := n.Images.ImageFsInfo(n.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err != nil {
			return err
		}
		if used := usage.GetImageFilesystems()[0].GetUsedBytes().GetValue(); used > 1<<19 {
			return fmt.Errorf("%d bytes are used", used)
		}
		return nil
	})
	proxy.Inject()
	if _, err := pull(n, proxy.Host+"/busybox:1"); err != nil {
		t.Errorf("pull again: %v", err)
	}
}

// trust lets the node speak plain HTTP to a registry.
func trust(t *testing.T, n *harness.Node, host string) {
	t.Helper()
	dir := filepath.Join(n.Config.Image.RegistryConfigDir, host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = \"http://"+host+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestKilledPull: the daemon is killed in the middle of a pull. Nothing of it is listed then, and the same pull succeeds.
func TestKilledPull(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	proxy := registry.RunProxy(t, n.Registry.Host)
	proxy.Inject(registry.Fault{Method: "GET", Path: "/blobs/", Stall: 1000})
	trust(t, n, proxy.Host)
	failed := make(chan error, 1)
	go func() {
		_, err := pull(n, proxy.Host+"/busybox:1")
		failed <- err
	}()
	n.Eventually("the pull has begun", func() error {
		if proxy.Count("GET", "/blobs/") == 0 {
			return os.ErrNotExist
		}
		return nil
	})
	if err := n.Restart(n.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wantError(t, <-failed, codes.Unavailable)
	answer, err := n.Images.ListImages(n.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(answer.GetImages()) > 0 {
		t.Errorf("images after the kill: %v, %v, want none", answer.GetImages(), err)
	}
	proxy.Inject()
	if _, err := pull(n, proxy.Host+"/busybox:1"); err != nil {
		t.Errorf("pull again: %v", err)
	}
}
