package image_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/test/imagefactory"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
	"github.com/berth-runtime/berth/test/registry"
)

// Accounts of an auth file, and of the credential helpers it names, are used for pulls without one.
func TestAuthFile(t *testing.T) {
	privilege.Root(t)
	programs := t.TempDir()
	for name, script := range map[string]string{
		"good":   `read host; test "$1" = get || exit 1; printf '{"ServerURL":"%s","Username":"ann","Secret":"secret"}' "$host"`,
		"absent": `echo "credentials not found in native keychain"; exit 1`,
		"failed": `echo "secret"; exit 1`,
		"long":   `while :; do echo 0123456789012345678901234567890123456789; done | head -c 100000`,
	} {
		if err := os.WriteFile(filepath.Join(programs, "docker-credential-"+name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", programs+":"+os.Getenv("PATH"))
	file := filepath.Join(programs, "auth.json")
	f, a := guarded(t, image.Options{AuthFile: file}, registry.Options{})
	const encoded = "YW5uOnNlY3JldA==" // ann:secret
	for content, want := range map[string]string{
		`{"auths":{"%s":{"auth":"` + encoded + `"}}}`:                                           "",
		`{"auths":{"http://%s/v2/":{"username":"ann","password":"secret"}}}`:                    "",
		`{"auths":{"%[1]s/hello":{"auth":"` + encoded + `"},"%[1]s":{"auth":"eDp5"}}}`:          "",
		`{"credHelpers":{"%s":"good"}}`:                                                         "",
		`{"auths":{"%s":{}},"credsStore":"good"}`:                                               "",
		`{"auths":{"other.example":{"auth":"` + encoded + `"}},"credsStore":"absent","x":"%s"}`: "no account",
		`{"credHelpers":{"%s":"failed"}}`:                                                       "docker-credential-failed: exit status 1",
		`{"credHelpers":{"%s":"long"}}`:                                                         "printed more than 65536 bytes",
		`{"credHelpers":{"%s":"../x"}}`:                                                         "the name has other characters",
		`{"credHelpers":{"%s":"missing"}}`:                                                      "docker-credential-missing",
		`{%s`:                                                                                   "is not Docker's config.json",
	} {
		content = fmt.Sprintf(content, f.proxy.Host)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		id, err := f.Pull(t.Context(), f.proxy.Host+"/hello:1", image.Auth{})
		if want == "" && (err != nil || id != a.ID) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %q, %v, want %q", content, id, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error has the output of the helper: %v", content, err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Pull(t.Context(), f.proxy.Host+"/hello:1", secretAccount); err != nil {
		t.Errorf("without the file: %v", err)
	}
}

// A token service that does not know POST, or answers in another form, is asked by GET and understood.
func TestOddTokenService(t *testing.T) {
	privilege.Root(t)
	f, a := guarded(t, image.Options{}, registry.Options{Bearer: true})
	tokens := registry.RunProxy(t, f.reg.TokenHost)
	f.proxy.Inject(registry.Fault{Change: func(r *http.Response) {
		if challenge := r.Header.Get("Www-Authenticate"); challenge != "" {
			r.Header.Set("Www-Authenticate", strings.Replace(challenge, f.reg.TokenHost, tokens.Host, 1))
		}
	}})
	replace := func(from, to string) func([]byte) []byte {
		return func(b []byte) []byte { return []byte(strings.Replace(string(b), from, to, 1)) }
	}
	other := registry.RunProxy(t, f.reg.TokenHost)
	for name, fault := range map[string]registry.Fault{
		"post-400":       {Method: http.MethodPost, Status: 400},
		"post-401":       {Method: http.MethodPost, Status: 401},
		"post-403":       {Method: http.MethodPost, Status: 403},
		"post-404":       {Method: http.MethodPost, Status: 404},
		"post-405":       {Method: http.MethodPost, Status: 405},
		"post-500":       {Method: http.MethodPost, Status: 500},
		"post-html":      {Method: http.MethodPost, Rewrite: func([]byte) []byte { return []byte("<html>") }},
		"post-elsewhere": {Method: http.MethodPost, Answer: registry.Redirect(http.StatusTemporaryRedirect, "http://"+other.Host)},
		"token-in-post":  {Rewrite: replace("access_token", "token")},
		"string-life":    {Rewrite: replace(`"expires_in":300`, `"expires_in":"300","issued_at":"now"`)},
		"no-life":        {Rewrite: replace(`"expires_in":300,`, "")},
	} {
		tokens.Inject(fault)
		if id, err := f.Pull(t.Context(), f.proxy.Host+"/hello:1", secretAccount); err != nil || id != a.ID {
			t.Errorf("%s: got %q, %v", name, id, err)
		}
	}
	if n := len(other.Requests()); n > 0 {
		t.Errorf("the account was sent on to another host %d times", n)
	}
}

// A mirror that stalls, drips or breaks off in the middle of a layer is passed over; the next host sends the rest.
func TestSlowMirrorIsPassedOver(t *testing.T) {
	privilege.Root(t)
	const host = "registry.example:5000"
	for name, fault := range map[string]registry.Fault{
		"silent": {Method: http.MethodGet, Delay: time.Hour}, "stalls": {Stall: 1000}, "drips": {Rate: 20}, "breaks": {Cut: 1000},
		"longer": {Rewrite: registry.Pad},
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			certs := leakcheck.Dir(t)
			f := newFixtureWith(t, image.Options{
				Root: ramDisk(t, "64m"), RegistryConfigDirs: []string{filepath.Join(certs, "absent"), certs},
				StallTimeout: time.Second, MinBytesPerSecond: 256,
			}, registry.Options{})
			a := build(t, bigger(1))
			imagefactory.MustPush(t, f.reg.Host, "hello:1", a)
			hostsFile(t, certs, host, fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n", f.reg.Host, f.proxy.Host))
			fault.Path = a.Layers[0].Digest.String()
			f.proxy.Inject(fault)
			id, err := f.Pull(t.Context(), host+"/hello:1", image.Auth{})
			if err != nil || id != a.ID {
				t.Errorf("got %q, %v", id, err)
			}
			if f.proxy.Count(http.MethodGet, fault.Path) == 0 {
				t.Error("the mirror was not asked")
			}
			if err := errors.Join(f.Remove(t.Context(), a.ID), f.GC(t.Context())); err != nil {
				t.Error(err)
			}
		})
	}
}

// Patterns pin the images whose full names they match.
func TestPinnedPatterns(t *testing.T) {
	privilege.Root(t)
	f := newFixtureWith(t, image.Options{Pinned: []string{"127.0.0.1:*/tools/*:1"}}, registry.Options{})
	for name, want := range map[string]bool{"tools/a:1": true, "tools/a:2": false, "other/a:1": false} {
		spec := hello()
		spec.Config.Cmd = []string{name}
		ref, _ := f.push(name, spec)
		if got := f.resolve(f.pull(ref)).Pinned; got != want {
			t.Errorf("%s: pinned %v, want %v", name, got, want)
		}
	}
}
