package image

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// usage is what the store, or a part of it, takes.
type usage struct {
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
}

// FsInfo is what images take of their file system, and where that is.
type FsInfo struct {
	Mountpoint        string
	UsedBytes, Inodes uint64 // of blobs and unpacked layers
	At                time.Time
}

// FsInfo answers from memory. Writable layers of containers are not counted,
// see RootfsUsage.
func (s *Store) FsInfo(context.Context) (FsInfo, error) {
	used := s.usage.Load()
	return FsInfo{Mountpoint: s.opts.Root, UsedBytes: used.Bytes, Inodes: used.Inodes, At: time.Now()}, nil
}

// measure sums up what is there. All figures are in the databases.
func (s *Store) measure(ctx context.Context) error {
	var sum usage
	err := s.gen.content.Walk(ctx, func(info content.Info) error {
		sum.Bytes += uint64(info.Size)
		sum.Inodes++
		return nil
	})
	if err != nil {
		return fmt.Errorf("measure blobs: %w", err)
	}
	err = s.gen.layers.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			return nil
		}
		used, err := s.gen.layers.Usage(ctx, info.Name)
		if errdefs.IsNotFound(err) {
			return nil
		}
		sum.Bytes += uint64(used.Size)
		sum.Inodes += uint64(used.Inodes)
		return err
	})
	if err != nil {
		return fmt.Errorf("measure layers: %w", err)
	}
	if err := s.gen.measureArtifacts(&sum); err != nil {
		return fmt.Errorf("measure artifacts: %w", err)
	}
	s.usage.Store(&sum)
	return nil
}
