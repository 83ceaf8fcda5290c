package image

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/containerd/containerd/v2/core/content"

	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
	registries "github.com/berth-runtime/berth/test/registry"
)

// A collection forgets a blob first and deletes it after. A pull in between
// finds it on the disk only, and must neither trip over it nor add to it.
func TestForgottenBlob(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	reg := registries.Run(t, registries.Options{})
	a, err := imagefactory.Build(imagefactory.Spec{Layers: []imagefactory.Layer{
		{Files: []imagefactory.File{imagefactory.Regular("hello", "world")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	imagefactory.MustPush(t, reg.Host, "hello:1", a)
	s, err := Open(t.Context(), Options{Root: leakcheck.Dir(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	layer := a.Layers[0]
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
		"http://"+reg.Host+"/v2/hello/blobs/"+layer.Digest.String(), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if err != nil {
		t.Fatal(err)
	}
	if err := content.WriteBlob(t.Context(), s.gen.backend, "forgotten", bytes.NewReader(data), layer); err != nil {
		t.Fatal(err)
	}
	id, err := s.Pull(t.Context(), reg.Host+"/hello:1", Auth{})
	if err != nil || id != a.ID {
		t.Fatalf("got %q, %v, want %s", id, err, a.ID)
	}
	if _, err := s.Resolve(id); err != nil {
		t.Error(err)
	}
}
