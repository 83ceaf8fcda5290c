package image_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// noise does not compress, so that a layer of it is as long as it says.
func noise(length int) string {
	source := rand.New(rand.NewPCG(1, uint64(length)))
	data := make([]byte, length)
	for i := range data {
		data[i] = byte(source.Uint32())
	}
	return string(data)
}

// bigger is an image of several layers, which takes a while to pull.
func bigger(layers int) imagefactory.Spec {
	spec := imagefactory.Spec{Config: imagefactory.MinimalConfig("/x")}
	for i := range layers {
		spec.Layers = append(spec.Layers, imagefactory.Layer{Files: []imagefactory.File{
			imagefactory.Regular("file-"+string(rune('a'+i)), noise(200<<10+i)),
		}})
	}
	return spec
}

// A registry that misbehaves gets the pull refused with the right kind of
// error, at each kind of request; nothing of it is kept; and once the registry
// behaves the same pull succeeds.
func TestRegistryFaults(t *testing.T) {
	privilege.Root(t)
	status := func(code int) registry.Fault { return registry.Fault{Status: code} }
	for name, test := range map[string]struct {
		fault registry.Fault
		want  error
	}{
		"400":         {status(http.StatusBadRequest), nil},
		"401":         {status(http.StatusUnauthorized), errdefs.ErrUnauthenticated},
		"403":         {status(http.StatusForbidden), errdefs.ErrPermissionDenied},
		"404":         {status(http.StatusNotFound), errdefs.ErrNotFound},
		"429":         {status(http.StatusTooManyRequests), errdefs.ErrUnavailable},
		"500":         {status(http.StatusInternalServerError), errdefs.ErrUnavailable},
		"502":         {status(http.StatusBadGateway), errdefs.ErrUnavailable},
		"503":         {status(http.StatusServiceUnavailable), errdefs.ErrUnavailable},
		"other-bytes": {registry.Fault{Method: http.MethodGet, Rewrite: registry.Corrupt}, errdefs.ErrFailedPrecondition},
		"more-bytes":  {registry.Fault{Method: http.MethodGet, Rewrite: registry.Pad}, errdefs.ErrFailedPrecondition},
		"fewer-bytes": {registry.Fault{Method: http.MethodGet, Rewrite: registry.Shorten}, errdefs.ErrFailedPrecondition},
		"no-bytes":    {registry.Fault{Method: http.MethodGet, Cut: -1}, errdefs.ErrUnavailable},
		"stalls":      {registry.Fault{Method: http.MethodGet, Stall: 100}, errdefs.ErrUnavailable},
		"never-says":  {registry.Fault{Delay: time.Hour}, errdefs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			var opts image.Options
			if test.fault.Stall > 0 || test.fault.Delay > 0 {
				opts.StallTimeout = 300 * time.Millisecond
			}
			f := newFixtureWith(t, opts, registry.Options{})
			ref, a := f.push("hello:1", bigger(2))
			for _, path := range []string{"/manifests/", a.ID, a.Layers[1].Digest.String()} {
				test.fault.Path = path
				f.proxy.Inject(test.fault)
				_, err := f.Pull(t.Context(), ref, image.Auth{})
				if err == nil || test.want != nil && !errors.Is(err, test.want) {
					t.Errorf("fault at %s: got %v, want %v", path, err, test.want)
				}
				unavailable := test.want != nil && errors.Is(test.want, errdefs.ErrUnavailable)
				if err != nil && strings.HasPrefix(err.Error(), "RegistryUnavailable: ") != unavailable {
					t.Errorf("fault at %s: the kubelet wants RegistryUnavailable in front only if it is: got %v", path, err)
				}
				f.nothingLeft()
			}
			f.proxy.Inject()
			f.reopen(t) // with a long timeout: the registry is as slow as the machine
			if id := f.pull(ref); id != a.ID {
				t.Errorf("after the fault: got %s, want %s", id, a.ID)
			}
		})
	}
}

// A connection that breaks off now and then is taken up where it broke.
func TestBrokenConnectionIsResumed(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, a := f.push("hello:1", bigger(1))
	f.proxy.Inject(registry.Fault{Path: a.Layers[0].Digest.String(), Cut: 100 << 10, Times: 1})
	f.pull(ref)
	if n := f.proxy.Count(http.MethodGet, a.Layers[0].Digest.String()); n != 2 {
		t.Errorf("the layer was asked for %d times, want twice", n)
	}
}

// A registry without a listener is unavailable, and says so at once.
func TestUnreachableRegistry(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{address + "/hello:1", "registry.invalid/hello:1"} {
		_, err = f.Pull(t.Context(), ref, image.Auth{})
		if !errdefs.IsUnavailable(err) || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") {
			t.Errorf("pull %s: got %v", ref, err)
		}
	}
	f.nothingLeft()
}

// A slow registry is waited for as long as something comes.
func TestSlowRegistry(t *testing.T) {
	privilege.Root(t)
	f := newFixtureWith(t, image.Options{StallTimeout: time.Second}, registry.Options{})
	ref, a := f.push("hello:1", bigger(1))
	f.proxy.Inject(registry.Fault{Path: a.Layers[0].Digest.String(), Rate: 150 << 10})
	f.pull(ref)
}

// A deadline that is over before the pull began starts nothing; one that ends
// in the middle, and a cancellation, leave nothing. The error says which it
// was and what was under way. The pull can be repeated at once.
func TestCancelledPull(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, a := f.push("hello:1", bigger(4))
	over, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if id, err := f.Pull(over, ref, image.Auth{}); id != "" || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deadline in the past: got %q, %v", id, err)
	}
	for name, path := range map[string]string{
		"manifest": "/manifests/", "configuration": a.ID, "layer": a.Layers[3].Digest.String(),
	} {
		t.Run(name, func(t *testing.T) {
			f.proxy.Inject(registry.Fault{Method: http.MethodGet, Path: path, Stall: 10})
			before := f.proxy.Count(http.MethodGet, path)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				_, err := f.Pull(ctx, ref, image.Auth{})
				ended <- err
			}()
			eventually(t, "the request that stalls", func() bool { return f.proxy.Count(http.MethodGet, path) > before })
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "while ") {
				t.Errorf("got %v, want that it was cancelled and in what stage", err)
			}
			f.nothingLeft()
		})
	}
	f.proxy.Inject()
	if id := f.pull(ref); id != a.ID {
		t.Errorf("repeated pull: got %s, want %s", id, a.ID)
	}
}

// Where a registry sends the node on to is signed, and does not get into an
// error, which everybody may see who sees the pod.
func TestErrorsKeepSecrets(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hello:1", hello())
	signed := "http://" + f.proxy.Host + "/storage/blob?X-Amz-Credential=abc&X-Amz-Signature=top-secret"
	onward := registry.Fault{Path: "/blobs/", Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {signed}}}
	for name, fault := range map[string]registry.Fault{
		"refused": {Path: "/storage/", Status: http.StatusForbidden}, "broken": {Path: "/storage/", Cut: -1},
		"silent": {Path: "/storage/", Status: http.StatusServiceUnavailable},
	} {
		f.proxy.Inject(onward, fault)
		_, err := f.Pull(t.Context(), ref, image.Auth{})
		if err == nil || strings.Contains(err.Error(), "top-secret") || strings.Contains(err.Error(), "abc") {
			t.Errorf("%s: got %v, want an error without the signature", name, err)
		}
		if name == "refused" && !strings.Contains(err.Error(), "/storage/blob?…: 403 Forbidden") {
			t.Errorf("%s: got %v, want that it names where and what", name, err)
		}
	}
	f.nothingLeft()
}
