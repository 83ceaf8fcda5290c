package image_test

import (
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

var secretAccount = image.Auth{Username: "ann", Password: "secret"}

// guarded is a store with a registry that asks for secretAccount, in which hello:1 is.
func guarded(t *testing.T, opts image.Options, reg registry.Options) (*fixture, *imagefactory.Artifact) {
	t.Helper()
	reg.Username, reg.Password = secretAccount.Username, secretAccount.Password
	f := newFixtureWith(t, opts, reg)
	a := build(t, hello())
	to := imagefactory.Target{Host: f.reg.Host, Repository: "hello", Username: reg.Username, Password: reg.Password}
	if err := imagefactory.Push(t.Context(), to, a, "1"); err != nil {
		t.Fatal(err)
	}
	return f, a
}

// storage answers requests for blobs as an object store does, which refuses any Authorization header.
func storage(t *testing.T) *registry.Proxy {
	t.Helper()
	open := registry.Run(t, registry.Options{})
	imagefactory.MustPush(t, open.Host, "hello:1", build(t, hello()))
	p := registry.RunProxy(t, open.Host)
	p.Inject(registry.Fault{Answer: func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" || r.Header.Get("X-Secret") != "" {
			http.Error(w, "unexpected credentials", http.StatusBadRequest)
			return
		}
		p.Forward(w, r)
	}})
	return p
}

// No status of a redirect takes credentials or configured headers to another port of the same host, and the
// pull succeeds as with other runtimes.
func TestRedirectKeepsCredentials(t *testing.T) {
	privilege.Root(t)
	for name, bearer := range map[string]bool{"basic": false, "bearer": true} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			t.Run(fmt.Sprintf("%s-%d", name, status), func(t *testing.T) {
				leakcheck.Check(t)
				certs := leakcheck.Dir(t)
				f, a := guarded(t, image.Options{Root: ramDisk(t, "64m"), RegistryConfigDir: certs}, registry.Options{Bearer: bearer})
				hostsFile(t, certs, f.proxy.Host, fmt.Sprintf(
					"server = \"http://%[1]s\"\n[header]\nX-Secret = \"token\"\nCookie = \"session\"\n", f.proxy.Host))
				other := storage(t)
				f.proxy.Inject(registry.Fault{Path: "/blobs/", Answer: registry.Redirect(status, "http://"+other.Host)})
				id, err := f.Pull(t.Context(), f.proxy.Host+"/hello:1", secretAccount)
				if err != nil || id != a.ID {
					t.Errorf("got %q, %v", id, err)
				}
				if other.Count(http.MethodGet, "/blobs/") == 0 {
					t.Error("the redirect was not followed")
				}
				for _, header := range []string{"Authorization", "Cookie", "X-Secret", "Referer"} {
					if got := other.Received(header); len(got) > 0 {
						t.Errorf("%s reached another host: %q", header, got)
					}
				}
				if len(f.proxy.Received("X-Secret")) == 0 {
					t.Error("the registry itself did not get its configured header")
				}
			})
		}
	}
}

// A redirect within the registry, relative or absolute, keeps its credentials.
func TestRedirectWithinRegistry(t *testing.T) {
	privilege.Root(t)
	for name, absolute := range map[string]bool{"relative": false, "absolute": true} {
		t.Run(name, func(t *testing.T) {
			f, a := guarded(t, image.Options{}, registry.Options{})
			address := ""
			if absolute {
				address = "http://" + f.proxy.Host
			}
			f.proxy.Inject(
				registry.Fault{Path: "/v2/moved", Answer: func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Location", address+strings.Replace(r.URL.Path, "/moved", "/hello", 1))
					w.WriteHeader(http.StatusTemporaryRedirect)
				}})
			if id, err := f.Pull(t.Context(), f.proxy.Host+"/moved:1", secretAccount); err != nil || id != a.ID {
				t.Errorf("got %q, %v", id, err)
			}
		})
	}
}

// A challenge of the host that a redirect leads to is not answered.
func TestRedirectedChallengeIsRefused(t *testing.T) {
	privilege.Root(t)
	f, _ := guarded(t, image.Options{}, registry.Options{})
	for name, challenge := range map[string]string{"basic": `Basic realm="x"`, "bearer": ""} {
		other := registry.RunProxy(t, f.reg.Host)
		if challenge == "" {
			challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="x"`, other.Host)
		}
		other.Inject(registry.Fault{Status: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {challenge}}})
		f.proxy.Inject(registry.Fault{Path: "/blobs/", Answer: registry.Redirect(http.StatusTemporaryRedirect, "http://"+other.Host)})
		_, err := f.Pull(t.Context(), f.proxy.Host+"/hello:1", secretAccount)
		if !errdefs.IsUnauthorized(err) {
			t.Errorf("%s: got %v, want unauthenticated", name, err)
		}
		if got := other.Received("Authorization"); len(got) > 0 {
			t.Errorf("%s: another host got %q", name, got)
		}
		if n := other.Count(http.MethodPost, "/token") + other.Count(http.MethodGet, "/token"); n > 0 {
			t.Errorf("%s: the account was sent to the token service of another host", name)
		}
	}
	f.nothingLeft()
}

// A registry that redirects for ever is given up.
func TestRedirectLoop(t *testing.T) {
	privilege.Root(t)
	f := newFixture(t)
	ref, _ := f.push("hello:1", hello())
	for _, path := range []string{"/manifests/", "/blobs/"} {
		f.proxy.Inject(registry.Fault{Path: path, Answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", r.URL.Path+"/")
			w.WriteHeader(http.StatusFound)
		}})
		before := len(f.proxy.Requests())
		if _, err := f.Pull(t.Context(), ref, image.Auth{}); err == nil || !strings.Contains(err.Error(), "redirected more than 10 times") {
			t.Errorf("%s: got %v", path, err)
		}
		if n := len(f.proxy.Requests()) - before; n > 50 {
			t.Errorf("%s: %d requests", path, n)
		}
	}
	f.nothingLeft()
}

// A registry over HTTPS cannot have its account sent in clear text, nor a tag resolved over HTTP.
func TestNothingInClearText(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	certs := leakcheck.Dir(t)
	f, a := guarded(t, image.Options{Root: ramDisk(t, "64m"), RegistryConfigDir: certs}, registry.Options{Bearer: true})
	secure, authority := registry.RunTLSProxy(t, f.reg.Host)
	hostsFile(t, certs, secure.Host, fmt.Sprintf("server = \"https://%s\"\nca = %q\n", secure.Host, authority))
	ref := secure.Host + "/hello:1"
	tokens := registry.RunProxy(t, f.reg.TokenHost)
	realm := func(answer *http.Response) {
		if challenge := answer.Header.Get("Www-Authenticate"); challenge != "" {
			answer.Header.Set("Www-Authenticate", strings.Replace(challenge, f.reg.TokenHost, tokens.Host, 1))
		}
	}
	secure.Inject(registry.Fault{Change: realm})
	_, err := f.Pull(t.Context(), ref, secretAccount)
	if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "is not encrypted") {
		t.Errorf("token service over HTTP: got %v", err)
	}
	if n := len(tokens.Requests()); n > 0 {
		t.Errorf("the token service was asked %d times over HTTP", n)
	}
	other := registry.RunProxy(t, f.reg.Host)
	secure.Inject(registry.Fault{Path: "/manifests/1", Answer: registry.Redirect(http.StatusFound, "http://"+other.Host)})
	if _, err := f.Pull(t.Context(), ref, image.Auth{RegistryToken: "x"}); err == nil || !strings.Contains(err.Error(), "from HTTPS to HTTP") {
		t.Errorf("tag redirected to HTTP: got %v", err)
	}
	if n := len(other.Requests()); n > 0 {
		t.Errorf("the tag was asked for %d times over HTTP", n)
	}
	f.nothingLeft()
	secureTokens, _ := registry.RunTLSProxy(t, f.reg.TokenHost)
	secure.Inject(registry.Fault{Change: func(answer *http.Response) {
		if challenge := answer.Header.Get("Www-Authenticate"); challenge != "" {
			answer.Header.Set("Www-Authenticate", strings.Replace(challenge, "http://"+f.reg.TokenHost, "https://"+secureTokens.Host, 1))
		}
	}})
	if id, err := f.Pull(t.Context(), ref, secretAccount); err != nil || id != a.ID {
		t.Errorf("token service over HTTPS: got %q, %v", id, err)
	}
}

// The account of a pull is for the registry of the reference. A mirror gets it only if the configuration
// or the account says so; without it the registry itself is asked.
func TestMirrorGetsNoCredentials(t *testing.T) {
	privilege.Root(t)
	const host = "registry.example:5000"
	for name, test := range map[string]struct {
		share, want bool
		address     func(mirror string) string
	}{
		"default": {want: false},
		"shared":  {share: true, want: true},
		"named":   {address: func(mirror string) string { return mirror }, want: true},
		"other":   {address: func(string) string { return host }, share: true, want: false},
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			certs := leakcheck.Dir(t)
			f, a := guarded(t, image.Options{
				Root: ramDisk(t, "64m"), RegistryConfigDir: certs, MirrorCredentials: test.share,
			}, registry.Options{})
			mirror := registry.RunProxy(t, f.reg.Host)
			hostsFile(t, certs, host, fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n", f.proxy.Host, mirror.Host))
			auth := secretAccount
			if test.address != nil {
				auth.ServerAddress = test.address(mirror.Host)
			}
			if id, err := f.Pull(t.Context(), host+"/hello:1", auth); err != nil || id != a.ID {
				t.Errorf("got %q, %v", id, err)
			}
			if got := len(mirror.Received("Authorization")) > 0; got != test.want {
				t.Errorf("mirror got credentials: %v, want %v", got, test.want)
			}
		})
	}
}

// hostsFile writes the hosts.toml of a host.
func hostsFile(t *testing.T, certs, host, content string) {
	t.Helper()
	dir := filepath.Join(certs, host)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
