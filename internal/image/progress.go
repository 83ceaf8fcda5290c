package image

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What a pull is doing.
const (
	StageResolving = "resolving"
	StageFetching  = "fetching"
	StageStoring   = "storing"
	StageDone      = "done"
	StageFailed    = "failed"
)

// What happens to a layer. A layer is unpacked while it is downloaded, so
// unpacking is what is left after its last byte came.
const (
	LayerWaiting     = "waiting"
	LayerDownloading = "downloading"
	LayerUnpacking   = "unpacking"
	LayerDone        = "done"
	LayerExists      = "exists"
)

const (
	// watchStep is how often a watcher gets the state.
	watchStep = 100 * time.Millisecond
	// watchWait is how long WatchPull waits for the pull to start.
	watchWait = 5 * time.Second
)

// Progress is how far a pull has come.
type Progress struct {
	Ref    string
	Layers []LayerProgress // empty until the manifest is known
	Stage  string
	Age    time.Duration
}

// LayerProgress is how far one layer has come; Done and Total are bytes as
// they are downloaded.
type LayerProgress struct {
	Digest      string
	Done, Total int64
	State       string
}

// progress is written by a pull and read by its watchers.
type progress struct {
	ref     string
	started time.Time

	mu     sync.Mutex
	stage  string
	layers []LayerProgress
}

func newProgress(ref string) *progress {
	return &progress{ref: ref, started: time.Now(), stage: StageResolving}
}

func (p *progress) setStage(stage string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stage = stage
	for i := range p.layers {
		// No work was done on these: their snapshots were there.
		if stage == StageStoring && p.layers[i].State == LayerWaiting {
			p.layers[i].State = LayerExists
		}
	}
}

func (p *progress) stageNow() (stage string, age time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stage, time.Since(p.started)
}

func (p *progress) setLayers(layers []ocispec.Descriptor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stage = StageFetching
	p.layers = nil
	for _, layer := range layers {
		p.layers = append(p.layers, LayerProgress{Digest: layer.Digest.String(), Total: layer.Size, State: LayerWaiting})
	}
}

// setLayer notes a state and how many bytes are there.
func (p *progress) setLayer(digest, state string, done int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.layers {
		if p.layers[i].Digest == digest {
			p.layers[i].State, p.layers[i].Done = state, done
		}
	}
}

func (p *progress) snapshot() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Progress{Ref: p.ref, Layers: slices.Clone(p.layers), Stage: p.stage, Age: time.Since(p.started)}
}

// WatchPull returns the progress of the pull of ref that is under way, or that
// starts within five seconds; else the error is ErrNotFound. The channel gives
// the latest state to its reader, ends with stage done or failed, and is
// closed then or when the context ends.
func (s *Store) WatchPull(ctx context.Context, ref string) (<-chan Progress, error) {
	named, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	f, err := s.awaitFlight(ctx, named.String())
	if err != nil {
		return nil, fmt.Errorf("watch pull of %s: %w", ref, err)
	}
	updates := make(chan Progress, 1)
	go f.watch(ctx, updates)
	return updates, nil
}

// awaitFlight finds a pull of the reference, with any account.
func (s *Store) awaitFlight(ctx context.Context, ref string) (*flight, error) {
	timeout := time.NewTimer(watchWait)
	defer timeout.Stop()
	for {
		s.flights.mu.Lock()
		started := s.flights.started
		for key, f := range s.flights.running {
			if key.ref == ref {
				s.flights.mu.Unlock()
				return f, nil
			}
		}
		s.flights.mu.Unlock()
		select {
		case <-started:
		case <-timeout.C:
			return nil, fmt.Errorf("no such pull is under way: %w", errdefs.ErrNotFound)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.ctx.Done():
			return nil, errClosed
		}
	}
}

// watch ends with the pull or the watcher's context.
func (f *flight) watch(ctx context.Context, updates chan Progress) {
	defer close(updates)
	tick := time.NewTicker(watchStep)
	defer tick.Stop()
	for {
		last := false
		select {
		case <-f.done:
			last = true
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-updates: // the reader was slow: replace what it missed
		default:
		}
		updates <- f.progress.snapshot()
		if last {
			return
		}
	}
}
