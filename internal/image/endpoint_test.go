package image_test

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// A registry whose answers to HEAD are incomplete, or that refuses HEAD, is pulled from by GET.
func TestOddHead(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, a := f.push("hello:1", hello())
	faults := map[string]registry.Fault{
		"no-type":     {Change: func(r *http.Response) { r.Header.Del("Content-Type") }},
		"other-type":  {Change: func(r *http.Response) { r.Header.Set("Content-Type", "application/json; charset=utf-8") }},
		"no-digest":   {Change: func(r *http.Response) { r.Header.Del("Docker-Content-Digest") }},
		"bad-digest":  {Change: func(r *http.Response) { r.Header.Set("Docker-Content-Digest", "x") }},
		"length-zero": {Change: func(r *http.Response) { r.Header.Set("Content-Length", "0") }},
		"no-length":   {Change: func(r *http.Response) { r.Header.Del("Content-Length"); r.ContentLength = -1 }},
	}
	for _, status := range []int{400, 403, 404, 405, 406, 500, 501} {
		faults[strconv.Itoa(status)] = registry.Fault{Status: status}
	}
	for name, fault := range faults {
		fault.Method = http.MethodHead
		f.proxy.Inject(fault)
		if id, err := f.Pull(t.Context(), ref, image.Auth{}); err != nil || id != a.ID {
			t.Errorf("%s: got %q, %v", name, id, err)
		}
	}
	f.proxy.Inject(registry.Fault{Path: "/manifests/", Change: func(r *http.Response) { r.Header.Del("Content-Type") }})
	if id, err := f.Pull(t.Context(), ref, image.Auth{}); err != nil || id != a.ID {
		t.Errorf("no type at all: got %q, %v", id, err)
	}
}

// A broken transfer is resumed though the registry does not serve the part that is asked for.
func TestOddRanges(t *testing.T) {
	privilege.Root(t)
	for name, answer := range map[string]func(r *http.Response){
		"other-part": func(r *http.Response) { r.Header.Set("Content-Range", "bytes 5-9/10") },
		"refused":    func(r *http.Response) { r.StatusCode = http.StatusRequestedRangeNotSatisfiable },
		"ignored":    nil,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			ref, a := f.push("hello:1", bigger(1))
			layer := a.Layers[0].Digest.String()
			second := registry.Fault{Path: layer, Change: answer, Times: 1}
			if answer == nil {
				second.Answer = func(w http.ResponseWriter, r *http.Request) {
					r.Header.Del("Range")
					f.proxy.Forward(w, r)
				}
			}
			f.proxy.Inject(registry.Fault{Path: layer, Cut: 100 << 10, Times: 1}, second)
			if id, err := f.Pull(t.Context(), ref, image.Auth{}); err != nil || id != a.ID {
				t.Errorf("got %q, %v", id, err)
			}
		})
	}
}

// A layer that comes byte by byte is given up, though no byte is late.
func TestDrippingLayerIsGivenUp(t *testing.T) {
	privilege.Root(t)
	f := newFixtureWith(t, image.Options{StallTimeout: time.Second, MinBytesPerSecond: 256}, registry.Options{})
	ref, a := f.push("hello:1", bigger(1))
	f.proxy.Inject(registry.Fault{Path: a.Layers[0].Digest.String(), Rate: 20})
	if _, err := f.Pull(t.Context(), ref, image.Auth{}); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v, want unavailable", err)
	}
	f.nothingLeft()
}
