package cri

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "github.com/berth-runtime/berth/api/berth/v1"
	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/leakcheck"
)

func TestPullPassesCredentialsAndAnswersTheID(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	var gotRef string
	var gotAuth image.Auth
	e.images.pull = func(_ context.Context, ref string, auth image.Auth) (string, error) {
		gotRef, gotAuth = ref, auth
		return "sha256:aa", nil
	}
	resp, err := e.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: "r.example/a:1", RuntimeHandler: "runc"},
		Auth: &runtimeapi.AuthConfig{
			Username: "u", Password: "very-secret", Auth: "a", IdentityToken: "i", RegistryToken: "r", ServerAddress: "s",
		},
	})
	if err != nil || resp.ImageRef != "sha256:aa" {
		t.Fatalf("%v, %v", resp, err)
	}
	want := image.Auth{Username: "u", Password: "very-secret", Auth: "a", IdentityToken: "i", RegistryToken: "r", ServerAddress: "s"}
	if gotRef != "r.example/a:1" || gotAuth != want {
		t.Errorf("pull %q with %+v", gotRef, gotAuth)
	}
	if strings.Contains(e.log.String(), "very-secret") {
		t.Error("the log has the password")
	}
	_, err = e.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "a", RuntimeHandler: "kata"}})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `"kata" is not configured, want one of crun, runc`) {
		t.Errorf("unknown handler: %v", err)
	}
}

// Kubelet knows a registry that does not answer by how the text begins, and
// the code must be Unknown. Other kinds have their own codes.
func TestPullErrors(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	for _, c := range []struct {
		err    error
		code   codes.Code
		prefix string
	}{
		{fmt.Errorf("connection refused: %w", errdefs.ErrUnavailable), codes.Unknown, "RegistryUnavailable: connection refused"},
		{fmt.Errorf("RegistryUnavailable: 503: %w", errdefs.ErrUnavailable), codes.Unknown, "RegistryUnavailable: 503"},
		{fmt.Errorf("manifest: %w", errdefs.ErrNotFound), codes.NotFound, "manifest"},
		{fmt.Errorf("token: %w", errdefs.ErrUnauthenticated), codes.Unauthenticated, "token"},
		{fmt.Errorf("pull: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "pull"},
	} {
		e.images.pull = func(context.Context, string, image.Auth) (string, error) { return "", c.err }
		_, err := e.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "a"}})
		if status.Code(err) != c.code || !strings.HasPrefix(status.Convert(err).Message(), c.prefix) {
			t.Errorf("%v: got %v, want %v %q", c.err, err, c.code, c.prefix)
		}
	}
}

func TestImagesAreShownWithUIDOrName(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	uid := int64(0)
	e.images.images = []*image.Image{
		{ID: "sha256:aa", Tags: []string{"r/a:1"}, Digests: []string{"r/a@sha256:d"}, Size: 5, UID: &uid, Username: "ignored", Pinned: true},
		{ID: "sha256:bb", Username: "www-data", Annotations: map[string]string{"k": "v"}},
	}
	want := []*runtimeapi.Image{
		{
			Id: "sha256:aa", RepoTags: []string{"r/a:1"}, RepoDigests: []string{"r/a@sha256:d"}, Size: 5,
			Uid: &runtimeapi.Int64Value{}, Spec: &runtimeapi.ImageSpec{Image: "sha256:aa"}, Pinned: true,
		},
		{Id: "sha256:bb", Username: "www-data", Spec: &runtimeapi.ImageSpec{Image: "sha256:bb", Annotations: map[string]string{"k": "v"}}},
	}
	resp, err := e.image.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || !slices.EqualFunc(resp.Images, want, func(a, b *runtimeapi.Image) bool { return proto.Equal(a, b) }) {
		t.Errorf("images =\n%v, %v, want\n%v", resp, err, want)
	}
	resp, err = e.image.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "r/a:1"}}})
	if err != nil || len(resp.Images) != 1 || resp.Images[0].Id != "sha256:aa" {
		t.Errorf("filtered = %v, %v", resp, err)
	}
	resp, err = e.image.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "r/none:1"}}})
	if err != nil || len(resp.Images) != 0 {
		t.Errorf("filtered by what is not here = %v, %v", resp, err)
	}
	s, err := e.image.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := receive(t, s.Recv); len(got) != 1 || len(got[0].Images) != 2 {
		t.Errorf("streamed %v", got)
	}
}

// What is not here is no error, neither to look at nor to remove.
func TestAbsentImages(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	resp, err := e.image.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "r/none:1"}})
	if err != nil || resp.Image != nil {
		t.Errorf("status = %v, %v", resp, err)
	}
	if _, err := e.image.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "r/none:1"}}); err != nil {
		t.Errorf("remove: %v", err)
	}
	for name, err := range map[string]error{
		"status": second(e.image.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "a//b"}})),
		"remove": second(e.image.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "a//b"}})),
	} {
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s of what is no reference: %v, want InvalidArgument", name, err)
		}
	}
}

func TestImageFsInfo(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	resp, err := e.image.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &runtimeapi.FilesystemUsage{
		Timestamp: 5e9, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/images"},
		UsedBytes: &runtimeapi.UInt64Value{Value: 7}, InodesUsed: &runtimeapi.UInt64Value{Value: 3},
	}
	if len(resp.ImageFilesystems) != 1 || !proto.Equal(resp.ImageFilesystems[0], want) || len(resp.ContainerFilesystems) != 1 {
		t.Errorf("info = %v", resp)
	}
}

func TestWatchPullDeliversProgressToItsEnd(t *testing.T) {
	leakcheck.Check(t)
	e := start(t)
	e.images.progress <- image.Progress{
		Ref: "r/a:1", Stage: image.StageFetching, Age: 3 * time.Second,
		Layers: []image.LayerProgress{{Digest: "sha256:l", Done: 4, Total: 9, State: image.LayerUnpacking}, {State: "a new word"}},
	}
	close(e.images.progress)
	s, err := e.node.WatchPull(t.Context(), &berthv1.WatchPullRequest{Ref: "r/a:1"})
	if err != nil {
		t.Fatal(err)
	}
	got := receive(t, s.Recv)
	want := &berthv1.WatchPullResponse{Ref: "r/a:1", Stage: image.StageFetching, AgeNs: 3e9, Layers: []*berthv1.LayerProgress{
		{Digest: "sha256:l", Done: 4, Total: 9, State: berthv1.LayerState_LAYER_STATE_UNPACKING}, {},
	}}
	if len(got) != 1 || !proto.Equal(got[0], want) {
		t.Errorf("progress = %v, want %v", got, want)
	}
}
