package pod

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// slowDisk measures a layer on request.
type slowDisk struct {
	fakeImages

	release chan error
	asked   chan string
}

func (d slowDisk) RootfsUsage(ctx context.Context, key string) (bytes, inodes uint64, err error) {
	d.asked <- key
	select {
	case err := <-d.release:
		return 42, 7, err
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
}

// TestLayersDoNotHoldReadersUp: a reader waits a moment for the first size of a layer and not at all for later ones, and
// layers are measured one at a time.
func TestLayersDoNotHoldReadersUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := slowDisk{release: make(chan error), asked: make(chan string, 10)}
		ctx, stop := context.WithCancel(t.Context())
		e := &Engine{opts: Options{Images: disk, Log: slog.New(slog.DiscardHandler)}, drivers: drivers{ctx: ctx}}
		one, two := &container{}, &container{}
		one.rec.ID, two.rec.ID = "one", "two"

		began := time.Now()
		for _, c := range []*container{one, two, one} {
			if size := e.layerSize(ctx, c); size != nil {
				t.Errorf("size of %s is %v before it was measured", c.rec.ID, size)
			}
		}
		if took := time.Since(began); took != 3*layerTimeout {
			t.Errorf("three readers waited %v, want %v each", took, layerTimeout)
		}
		synctest.Wait()
		if len(disk.asked) != 1 || <-disk.asked != "one" {
			t.Error("more than one layer is measured at a time")
		}
		disk.release <- nil
		disk.release <- errors.New("no disk")
		synctest.Wait()
		if size := e.layerSize(ctx, one); size == nil || size.bytes != 42 || size.inodes != 7 {
			t.Errorf("size of one is %v, want what was measured", size)
		}

		time.Sleep(2 * layerAge) // in the bubble's time
		began = time.Now()
		if size := e.layerSize(ctx, one); size == nil || size.bytes != 42 || time.Since(began) != 0 {
			t.Errorf("an old size is %v after %v, want it at once", size, time.Since(began))
		}
		if size := e.layerSize(ctx, two); size != nil || time.Since(began) != 0 {
			t.Errorf("a layer that cannot be measured has size %v after %v", size, time.Since(began))
		}
		stop()
		e.drivers.wg.Wait()
		e.drivers.closed = true
		if e.queueLayer(one) || len(e.layers.queue) != 0 {
			t.Error("a closed engine takes layers")
		}
	})
}
