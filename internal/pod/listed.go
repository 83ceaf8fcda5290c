package pod

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// maxListed bounds what identifies all pods and containers. A list of them, with all else left out, fits into the
	// 16 MiB that clients accept.
	maxListed = 14 << 20
	// listedOverhead is at most what an object takes of a list beside the values below: IDs, digests, times, state
	// and statistics.
	listedOverhead = 1536
	// MaxListedTag bounds a label or annotation that a list keeps although all else is left out.
	MaxListedTag = 256
	// ListedTags begins the keys of such labels and annotations.
	ListedTags = "io.kubernetes."
)

// ListedSize is at most what an object takes of a list that has only what identifies the objects in it: its names, and
// labels and annotations of kubelet.
func ListedSize(names []string, tags ...map[string]string) int {
	size := listedOverhead
	for _, name := range names {
		size += len(name)
	}
	for _, list := range tags {
		for key, value := range list {
			if strings.HasPrefix(key, ListedTags) && len(value) <= MaxListedTag {
				size += len(key) + len(value) + 16
			}
		}
	}
	return size
}

func (s *sandbox) listedSize() int {
	cfg := s.rec.Config.M
	m := cfg.GetMetadata()
	return ListedSize([]string{m.GetName(), m.GetNamespace(), m.GetUid(), s.rec.Handler}, cfg.GetLabels(), cfg.GetAnnotations())
}

func (c *container) listedSize() int {
	cfg := c.rec.Config.M
	names := []string{cfg.GetMetadata().GetName(), cfg.GetImage().GetImage(), cfg.GetImage().GetRuntimeHandler(), c.rec.ImageRef, c.rec.ImageID}
	return ListedSize(names, cfg.GetLabels(), cfg.GetAnnotations(), cfg.GetImage().GetAnnotations())
}

// admit refuses an object with which lists would get larger than clients accept. Precondition: e.mu is held.
func (e *Engine) admit(size int) error {
	if have := e.sandboxes.listed + e.containers.listed; have+size > maxListed {
		return fmt.Errorf("%d pods and %d containers take %d bytes of lists, and another one would exceed the %d that clients accept: remove some: %w",
			len(e.sandboxes.byID), len(e.containers.byID), have, maxListed, errdefs.ErrResourceExhausted)
	}
	return nil
}
