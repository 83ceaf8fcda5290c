package image_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// Every form in which the kubelet passes an account works against a registry
// that asks for it on each request and one that hands out tokens; an anonymous
// and a wrong password are refused as such, and keep nothing.
func TestAccounts(t *testing.T) {
	privilege.Root(t)
	const user, password, identity = "ann", "se:cret", "an-identity-token"
	encoded := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	for name, bearer := range map[string]bool{"basic": false, "bearer": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixtureWith(t, image.Options{},
				registry.Options{Username: user, Password: password, Bearer: bearer, IdentityToken: identity})
			to := imagefactory.Target{Host: f.reg.Host, Repository: "private/hello", Username: user, Password: password}
			a := build(t, hello())
			if err := imagefactory.Push(t.Context(), to, a, "1"); err != nil {
				t.Fatal(err)
			}
			ref := f.proxy.Host + "/private/hello:1"
			good := map[string]image.Auth{
				"password": {Username: user, Password: password},
				"encoded":  {Auth: encoded},
				"address":  {Auth: encoded, ServerAddress: "http://" + f.proxy.Host + "/v2/"},
			}
			if bearer {
				good["identity"] = image.Auth{IdentityToken: identity}
			}
			for name, auth := range good {
				if id, err := f.Pull(t.Context(), ref, auth); err != nil || id != a.ID {
					t.Errorf("%s: got %q, %v", name, id, err)
				}
				if err := errors.Join(f.Remove(t.Context(), ref), f.GC(t.Context())); err != nil {
					t.Fatal(err)
				}
			}
			for name, auth := range map[string]image.Auth{
				"anonymous": {}, "wrong password": {Username: user, Password: "x"}, "wrong identity": {IdentityToken: "x"},
				"other address": {Auth: encoded, ServerAddress: "registry.example"},
			} {
				if _, err := f.Pull(t.Context(), ref, auth); !errdefs.IsUnauthorized(err) {
					t.Errorf("%s: got %v, want unauthenticated", name, err)
				}
				f.nothingLeft()
			}
			if _, err := f.Pull(t.Context(), ref, image.Auth{Auth: "!"}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("auth that is not base64: got %v, want invalid argument", err)
			}
		})
	}
}

// A token for the registry itself is shown as it is.
func TestRegistryToken(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, a := f.push("hello:1", hello())
	f.proxy.Inject(registry.Fault{Unless: "Bearer the-token", Status: http.StatusUnauthorized})
	if id, err := f.Pull(t.Context(), ref, image.Auth{RegistryToken: "the-token"}); err != nil || id != a.ID {
		t.Errorf("got %q, %v", id, err)
	}
	if _, err := f.Pull(t.Context(), ref, image.Auth{RegistryToken: "another"}); !errdefs.IsUnauthorized(err) {
		t.Errorf("another token: got %v, want unauthenticated", err)
	}
}

// Two pulls with different accounts do not share an answer: the one with the
// right account succeeds while the other is still refused.
func TestAccountsDoNotJoin(t *testing.T) {
	privilege.Root(t)
	f := newFixtureWith(t, image.Options{}, registry.Options{Username: "ann", Password: "secret"})
	to := imagefactory.Target{Host: f.reg.Host, Repository: "hello", Username: "ann", Password: "secret"}
	if err := imagefactory.Push(t.Context(), to, build(t, hello()), "1"); err != nil {
		t.Fatal(err)
	}
	ref := f.proxy.Host + "/hello:1"
	refused := make(chan error, 1)
	go func() {
		_, err := f.Pull(t.Context(), ref, image.Auth{Username: "bob", Password: "guess"})
		refused <- err
	}()
	if _, err := f.Pull(t.Context(), ref, image.Auth{Username: "ann", Password: "secret"}); err != nil {
		t.Error(err)
	}
	if err := <-refused; !errdefs.IsUnauthorized(err) {
		t.Errorf("wrong account: got %v", err)
	}
}

// mirrored returns a certs.d tree that has the given hosts.toml for a host.
func mirrored(t *testing.T, host, content string) string {
	t.Helper()
	root := leakcheck.Dir(t)
	dir := filepath.Join(root, host)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return root
}

// Mirrors of hosts.toml are asked in their order: one that is broken or does
// not have the image is passed over, and the image keeps the name that was
// asked for, from any host.
func TestMirrors(t *testing.T) {
	privilege.Root(t)
	const host = "registry.invalid"
	origin, empty := registry.Run(t, registry.Options{}), registry.Run(t, registry.Options{})
	broken := registry.RunProxy(t, origin.Host)
	broken.Inject(registry.Fault{Status: http.StatusInternalServerError})
	a := build(t, hello())
	imagefactory.MustPush(t, origin.Host, "team/hello:1", a)
	config := mirrored(t, host, fmt.Sprintf(`server = "https://%s"
[host."http://%s"]
  capabilities = ["pull", "resolve"]
[host."http://%s"]
  capabilities = ["pull", "resolve"]
[host."http://%s"]
  capabilities = ["pull", "resolve"]
`, host, broken.Host, empty.Host, origin.Host))
	f := newFixtureWith(t, image.Options{RegistryConfigDir: config}, registry.Options{})
	ref := host + "/team/hello:1"
	if id := f.pull(ref); id != a.ID {
		t.Errorf("got %s, want %s", id, a.ID)
	}
	if got := f.resolve(ref); got.Tags[0] != ref || !strings.HasPrefix(got.Digests[0], host+"/team/hello@") {
		t.Errorf("names: got %v and %v", got.Tags, got.Digests)
	}
	if broken.Count(http.MethodHead, "/manifests/1") == 0 {
		t.Error("the first mirror was not asked")
	}
}

// Docker Hub's short names are looked for under their full form, also at a
// mirror.
func TestShortName(t *testing.T) {
	privilege.Root(t)
	origin := registry.Run(t, registry.Options{})
	imagefactory.MustPush(t, origin.Host, "library/hello:latest", build(t, hello()))
	config := mirrored(t, "docker.io", fmt.Sprintf("[host.\"http://%s\"]\n", origin.Host))
	f := newFixtureWith(t, image.Options{RegistryConfigDir: config}, registry.Options{})
	f.pull("hello")
	got := f.resolve("hello")
	if got.Tags[0] != "docker.io/library/hello:latest" {
		t.Errorf("tag: got %s", got.Tags[0])
	}
	for _, alias := range []string{"hello:latest", "library/hello", "docker.io/hello", "index.docker.io/library/hello:latest"} {
		if f.resolve(alias) != got {
			t.Errorf("%s is another image", alias)
		}
	}
}

// A hosts.toml that cannot be read stops the pull and names file and line. It
// must not be passed over: the mirror in it may be the only way.
func TestBrokenMirrorConfiguration(t *testing.T) {
	privilege.Root(t)
	const host = "registry.invalid"
	config := mirrored(t, host, "server = \"https://x\"\n[host.\"http://y\"\n")
	f := newFixtureWith(t, image.Options{RegistryConfigDir: config}, registry.Options{})
	_, err := f.Pull(t.Context(), host+"/hello:1", image.Auth{})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "hosts.toml:2:") {
		t.Errorf("got %v, want invalid argument with file and line", err)
	}
}

// A mirror that sends something else than it is asked for is passed over, at
// each kind of request, as long as there is another host; without one the pull
// fails.
func TestMirrorSendsSomethingElse(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	a := build(t, bigger(2))
	imagefactory.MustPush(t, f.reg.Host, "hello:1", a)
	const host = "registry.example:5000"
	certs := mirrored(t, host, fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n", f.reg.Host, f.proxy.Host))
	s := open(t, image.Options{Root: ramDisk(t, "64m"), RegistryConfigDir: certs})
	for name, fault := range map[string]registry.Fault{
		"other": {Method: http.MethodGet, Rewrite: registry.Corrupt}, "fewer": {Method: http.MethodGet, Rewrite: registry.Shorten},
	} {
		for _, path := range []string{"/manifests/sha256", a.ID, a.Layers[1].Digest.String()} {
			fault.Path = path
			f.proxy.Inject(fault)
			if id, err := s.Pull(t.Context(), host+"/hello:1", image.Auth{}); err != nil || id != a.ID {
				t.Errorf("%s bytes at %s: got %q, %v", name, path, id, err)
			}
			if err := errors.Join(s.Remove(t.Context(), a.ID), s.GC(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
	}
}
