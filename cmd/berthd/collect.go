package main

import (
	"context"
	"time"
)

const (
	// collectionInterval is the garbage collection interval.
	// All of it is removed when it becomes unused; this finds what a crash, a
	// broken plugin or a person left.
	collectionInterval = 10 * time.Minute
	// upkeepLimit bounds one round.
	upkeepLimit = 5 * time.Minute
)

// collectGarbage frees unreferenced addresses and image data until ctx ends.
func (d *daemon) collectGarbage(ctx context.Context) {
	tick := time.NewTicker(collectionInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.upkeepOnce(ctx)
		}
	}
}

func (d *daemon) upkeepOnce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, upkeepLimit)
	defer cancel()
	if err := d.engine.CollectNetwork(ctx); err != nil && ctx.Err() == nil {
		d.log.Warn("free the addresses of pods that are gone", "error", err)
	}
	if err := d.images.GC(ctx); err != nil && ctx.Err() == nil {
		d.log.Warn("remove image data that nothing refers to", "error", err)
	}
}
