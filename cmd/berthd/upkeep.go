package main

import (
	"context"
	"time"
)

const (
	// upkeepEvery is how often what nobody refers to any more is looked for.
	// All of it is removed when it becomes unused; this finds what a crash, a
	// broken plugin or a person left.
	upkeepEvery = 10 * time.Minute
	// upkeepLimit bounds one round.
	upkeepLimit = 5 * time.Minute
)

// upkeep frees addresses and image data that nothing refers to, until ctx ends.
func (d *daemon) upkeep(ctx context.Context) {
	tick := time.NewTicker(upkeepEvery)
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
