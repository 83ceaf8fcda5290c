package imagefactory_test

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/registry"
)

// A pushed index names the image between its decoys, and the registry serves
// exactly the bytes whose digests the artifact announced.
func TestPushServesWhatWasBuilt(t *testing.T) {
	reg := registry.Run(t, registry.Options{})
	image, err := imagefactory.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	index, err := imagefactory.WithDecoys(image)
	if err != nil {
		t.Fatal(err)
	}
	imagefactory.MustPush(t, reg.Host, "library/busybox:1", index)

	body := get(t, "http://"+reg.Host+"/v2/library/busybox/manifests/1", index.Descriptor.MediaType)
	if got := digest.FromBytes(body); got != index.Descriptor.Digest {
		t.Errorf("index digest: got %s, want %s", got, index.Descriptor.Digest)
	}
	var decoded ocispec.Index
	if err := json.Unmarshal(body, &decoded); err != nil {
		t.Fatal(err)
	}
	if len(decoded.Manifests) != 4 || decoded.Manifests[1].Digest != image.Descriptor.Digest {
		t.Errorf("index: got %+v, want the image second of four", decoded.Manifests)
	}
	for _, blob := range append([]string{image.ID}, image.Layers[0].Digest.String()) {
		body := get(t, "http://"+reg.Host+"/v2/library/busybox/blobs/"+blob, "")
		if got := digest.FromBytes(body).String(); got != blob {
			t.Errorf("blob digest: got %s, want %s", got, blob)
		}
	}
}

// The same description gives the same digests, whatever the compression.
func TestBuildIsReproducible(t *testing.T) {
	for _, compression := range []imagefactory.Compression{imagefactory.Gzip, imagefactory.Zstd, imagefactory.Uncompressed} {
		spec := imagefactory.Spec{Layers: []imagefactory.Layer{{
			Compression: compression,
			Files:       []imagefactory.File{imagefactory.Dir("a"), imagefactory.Regular("a/b", "c"), imagefactory.Opaque("a")},
		}}}
		first, err := imagefactory.Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		second, err := imagefactory.Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		if first.Descriptor.Digest != second.Descriptor.Digest || first.ID == "" {
			t.Errorf("compression %d: got %s then %s", compression, first.Descriptor.Digest, second.Descriptor.Digest)
		}
	}
}

// Pushing works against every way in which the registry asks for a password,
// and an anonymous client is refused.
func TestPushLogsIn(t *testing.T) {
	image, err := imagefactory.Build(imagefactory.Spec{Config: imagefactory.MinimalConfig("sh")})
	if err != nil {
		t.Fatal(err)
	}
	for name, bearer := range map[string]bool{"basic": false, "bearer": true} {
		t.Run(name, func(t *testing.T) {
			reg := registry.Run(t, registry.Options{Username: "ann", Password: "secret", Bearer: bearer})
			to := imagefactory.Target{Host: reg.Host, Repository: "private/image"}
			if err := imagefactory.Push(t.Context(), to, image, "1"); err == nil {
				t.Error("push without an account: got no error")
			}
			to.Username, to.Password = "ann", "secret"
			if err := imagefactory.Push(t.Context(), to, image, "1"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Each fault of the proxy reaches the client, and only as often as it should.
func TestProxyInjectsFaults(t *testing.T) {
	reg := registry.Run(t, registry.Options{})
	image, err := imagefactory.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	imagefactory.MustPush(t, reg.Host, "busybox:1", image)
	proxy := registry.RunProxy(t, reg.Host)
	address := "http://" + proxy.Host + "/v2/busybox/manifests/1"
	fetch := func() (int, []byte, error) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept", image.Descriptor.MediaType)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return 0, nil, err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		return answer.StatusCode, body, err
	}

	proxy.Inject(registry.Fault{Path: "/manifests/", Status: http.StatusTooManyRequests, Times: 1})
	if status, _, err := fetch(); status != http.StatusTooManyRequests || err != nil {
		t.Errorf("status fault: got %d, %v", status, err)
	}
	if status, body, err := fetch(); status != http.StatusOK || err != nil || digest.FromBytes(body) != image.Descriptor.Digest {
		t.Errorf("after the fault: got %d, %v", status, err)
	}
	proxy.Inject(registry.Fault{Rewrite: registry.Corrupt})
	if _, body, err := fetch(); err != nil || int64(len(body)) != image.Descriptor.Size || digest.FromBytes(body) == image.Descriptor.Digest {
		t.Errorf("corrupt fault: got %d bytes, %v", len(body), err)
	}
	proxy.Inject(registry.Fault{Cut: 10})
	if _, body, err := fetch(); err == nil || len(body) > 10 {
		t.Errorf("cut fault: got %d bytes, %v, want at most 10 and an error", len(body), err)
	}
	if got := proxy.Count(http.MethodGet, "/manifests/"); got != 4 {
		t.Errorf("requests: got %d, want 4", got)
	}
	http.DefaultClient.CloseIdleConnections()
}

func get(t *testing.T, address, accept string) []byte {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		request.Header.Set("Accept", accept)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("get %s: status %s, %v: %s", address, answer.Status, err, body)
	}
	return body
}
