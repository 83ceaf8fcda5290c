package pod

import (
	"context"
	"sync"
	"time"
)

const (
	// layerAge is how old the measured size of a writable layer may be:
	// measuring walks the layer, and kubelet asks every ten seconds.
	layerAge = time.Minute
	// layerDeadline bounds the walk through one layer.
	layerDeadline = time.Minute
	// layerTimeout is how long a reader waits for the first measurement of a
	// layer. No caller waits for later ones.
	layerTimeout = 250 * time.Millisecond
)

// layer is what is known of a container's writable layer. It belongs to the
// container and goes with it.
type layer struct {
	mu     sync.Mutex
	queued bool
	known  *layerSize
	// measured is closed once the first measurement is over.
	measured chan struct{}
}

// layerSize is the outcome of one measurement.
type layerSize struct {
	bytes, inodes uint64
	at            time.Time
}

// layers measures writable layers, one at a time: a node has many, and the
// disks are for the workloads.
type layers struct {
	mu      sync.Mutex
	queue   []*container
	running bool
}

// layerSize tells the size of a container's writable layer as of about layerAge
// ago at most; nil if it is not known yet.
func (e *Engine) layerSize(ctx context.Context, c *container) *layerSize {
	known, first := e.askLayer(c)
	if known != nil {
		return known
	}
	timer := time.NewTimer(layerTimeout)
	defer timer.Stop()
	select {
	case <-first:
	case <-timer.C:
	case <-ctx.Done():
	}
	c.layer.mu.Lock()
	defer c.layer.mu.Unlock()
	return c.layer.known
}

// askLayer returns what is known, and sees to it that it is measured again if it
// is old. The channel is closed after the first measurement.
func (e *Engine) askLayer(c *container) (*layerSize, <-chan struct{}) {
	l := &c.layer
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.measured == nil {
		l.measured = make(chan struct{})
	}
	if !l.queued && (l.known == nil || time.Since(l.known.at) > layerAge) {
		l.queued = e.queueLayer(c)
	}
	return l.known, l.measured
}

// queueLayer reports false if the engine is closed.
func (e *Engine) queueLayer(c *container) bool {
	e.layers.mu.Lock()
	defer e.layers.mu.Unlock()
	e.layers.queue = append(e.layers.queue, c)
	if !e.layers.running {
		e.layers.running = e.drivers.start(e.measureLayers)
	}
	if !e.layers.running {
		e.layers.queue = nil
	}
	return e.layers.running
}

// measureLayers works until the queue is empty.
func (e *Engine) measureLayers(ctx context.Context) {
	for {
		e.layers.mu.Lock()
		if len(e.layers.queue) == 0 || ctx.Err() != nil {
			e.layers.running, e.layers.queue = false, nil
			e.layers.mu.Unlock()
			return
		}
		c := e.layers.queue[0]
		e.layers.queue = e.layers.queue[1:]
		e.layers.mu.Unlock()
		e.measureLayer(ctx, c)
	}
}

func (e *Engine) measureLayer(ctx context.Context, c *container) {
	ctx, cancel := context.WithTimeout(ctx, layerDeadline)
	defer cancel()
	size := &layerSize{at: time.Now()}
	var err error
	size.bytes, size.inodes, err = e.opts.Images.RootfsUsage(ctx, c.rec.ID)
	l := &c.layer
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queued = false
	if err != nil {
		e.opts.Log.Debug("measure writable layer", "container_id", c.rec.ID, "error", err)
	} else {
		l.known = size
	}
	select {
	case <-l.measured:
	default:
		close(l.measured)
	}
}
