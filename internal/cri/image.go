package cri

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-runtime/berth/internal/image"
)

// PullImage pulls an image and answers its ID, which is the same whichever
// registry it came from.
func (s *imageService) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	spec := req.GetImage()
	if spec.GetImage() == "" {
		return nil, invalid("image.image", "missing")
	}
	if err := s.knownHandler(spec); err != nil {
		return nil, err
	}
	if !httpguts.ValidHeaderFieldValue(req.GetAuth().GetRegistryToken()) {
		return nil, invalid("auth.registry_token", "has characters that no HTTP header can have")
	}
	id, err := s.Images.Pull(ctx, spec.GetImage(), authOf(req.GetAuth()))
	if err != nil {
		return nil, pullError(ctx, err)
	}
	return &runtimeapi.PullImageResponse{ImageRef: id}, nil
}

// pullError tells kubelet in its own words that a registry did not answer or
// that a verifier refused: the code must say nothing and the text begin with
// the reason.
func pullError(ctx context.Context, err error) error {
	_, refused := errors.AsType[*image.RefusedError](err)
	switch {
	case ctx.Err() != nil:
		return err
	case refused:
		return beginWith(crierrors.ErrSignatureValidationFailed, err)
	case errdefs.IsUnavailable(err):
		return beginWith(crierrors.ErrRegistryUnavailable, err)
	}
	return err
}

func beginWith(reason, err error) error {
	text := oneLine(err)
	if !strings.HasPrefix(text, reason.Error()) {
		text = reason.Error() + ": " + text
	}
	return status.Error(codes.Unknown, text)
}

// authOf is what kubelet knows about a registry's credentials.
func authOf(a *runtimeapi.AuthConfig) image.Auth {
	return image.Auth{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		Auth:          a.GetAuth(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
		ServerAddress: a.GetServerAddress(),
	}
}

// knownHandler refuses an image that is meant for a handler which is not there.
func (s *imageService) knownHandler(spec *runtimeapi.ImageSpec) error {
	name := spec.GetRuntimeHandler()
	if name == "" {
		return nil
	}
	handlers := s.Engine.Handlers()
	if _, ok := handlers[name]; ok {
		return nil
	}
	known := strings.Join(slices.Sorted(maps.Keys(handlers)), ", ")
	return invalid("image.runtime_handler", fmt.Sprintf("%q is not configured, want one of %s", name, known))
}

// ImageStatus answers from memory what an image is; nothing if it is not here.
func (s *imageService) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, invalid("image.image", "missing")
	}
	if err := s.knownHandler(req.GetImage()); err != nil {
		return nil, err
	}
	img, err := s.Images.Resolve(ref)
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(img)}
	if !req.GetVerbose() {
		return fitReply(ctx, s.Server, "ImageStatus", resp), nil
	}
	info := map[string]any{"imageSpec": map[string]any{"config": img.Config}}
	if img.ArtifactType != "" {
		info = map[string]any{"artifactType": img.ArtifactType}
	}
	resp.Info, err = verbose(map[string]any{"info": info})
	return fitReply(ctx, s.Server, "ImageStatus", resp), err
}

// ListImages answers from memory which images are here.
func (s *imageService) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.listImages(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: fitList(ctx, s.Server, "ListImages", images)}, nil
}

// StreamImages is ListImages in messages of a bounded size.
func (s *imageService) StreamImages(req *runtimeapi.StreamImagesRequest, to runtimeapi.ImageService_StreamImagesServer) error {
	images, err := s.listImages(req.GetFilter())
	if err != nil {
		return err
	}
	return inBatches(images, func(batch []*runtimeapi.Image) error {
		return to.Send(&runtimeapi.StreamImagesResponse{Images: fitList(to.Context(), s.Server, "StreamImages", batch)})
	})
}

// listImages answers all images, or the one that the filter names.
func (s *imageService) listImages(f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	found := []*image.Image{}
	if ref := f.GetImage().GetImage(); ref != "" {
		img, err := s.Images.Resolve(ref)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		if err == nil {
			found = append(found, img)
		}
	} else {
		found = s.Images.List()
	}
	images := make([]*runtimeapi.Image, 0, len(found))
	for _, img := range found {
		images = append(images, criImage(img))
	}
	return images, nil
}

// RemoveImage removes an image with all its names. It succeeds for one that is
// not here.
func (s *imageService) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, invalid("image.image", "missing")
	}
	if err := s.Images.Remove(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo answers what images and writable layers take. They share one
// filesystem.
func (s *imageService) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	info, err := s.Images.FsInfo(ctx)
	if err != nil {
		return nil, err
	}
	usage := &runtimeapi.FilesystemUsage{
		Timestamp:  info.At.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: info.Mountpoint},
		UsedBytes:  &runtimeapi.UInt64Value{Value: info.UsedBytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: info.Inodes},
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{usage},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{usage},
	}, nil
}

// criImage is what the CRI calls an image. It has a numeric user or a name, not
// both.
func criImage(img *image.Image) *runtimeapi.Image {
	shown := &runtimeapi.Image{
		Id:          img.ID,
		RepoTags:    img.Tags,
		RepoDigests: img.Digests,
		Size:        img.Size,
		Username:    img.Username,
		Spec:        &runtimeapi.ImageSpec{Image: img.ID, Annotations: img.Annotations},
		Pinned:      img.Pinned,
	}
	if img.UID != nil {
		shown.Uid, shown.Username = &runtimeapi.Int64Value{Value: *img.UID}, ""
	}
	return shown
}
