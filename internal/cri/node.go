package cri

import (
	"fmt"

	"github.com/containerd/errdefs"

	berthv1 "github.com/berth-runtime/berth/api/berth/v1"
	"github.com/berth-runtime/berth/internal/image"
)

// layerStates are what the image store calls what happens to a layer.
var layerStates = map[string]berthv1.LayerState{
	image.LayerWaiting:     berthv1.LayerState_LAYER_STATE_WAITING,
	image.LayerDownloading: berthv1.LayerState_LAYER_STATE_DOWNLOADING,
	image.LayerUnpacking:   berthv1.LayerState_LAYER_STATE_UNPACKING,
	image.LayerDone:        berthv1.LayerState_LAYER_STATE_DONE,
	image.LayerExists:      berthv1.LayerState_LAYER_STATE_EXISTS,
}

// WatchPull delivers the progress of a pull until it ends.
func (s *nodeService) WatchPull(req *berthv1.WatchPullRequest, to berthv1.Node_WatchPullServer) error {
	if req.GetRef() == "" {
		return invalid("ref", "missing")
	}
	progress, err := s.Images.WatchPull(to.Context(), req.GetRef())
	if err != nil {
		return err
	}
	for {
		select {
		case now, ok := <-progress:
			if !ok {
				return nil
			}
			if err := to.Send(pullProgress(now)); err != nil {
				return err
			}
		case <-to.Context().Done():
			return to.Context().Err()
		case <-s.stopping:
			return fmt.Errorf("watch the pull of %s: the daemon is stopping: %w", req.GetRef(), errdefs.ErrUnavailable)
		}
	}
}

func pullProgress(p image.Progress) *berthv1.WatchPullResponse {
	shown := &berthv1.WatchPullResponse{Ref: p.Ref, Stage: p.Stage, AgeNs: p.Age.Nanoseconds()}
	for _, l := range p.Layers {
		shown.Layers = append(shown.Layers, &berthv1.LayerProgress{
			Digest: l.Digest, Done: l.Done, Total: l.Total, State: layerStates[l.State],
		})
	}
	return shown
}
