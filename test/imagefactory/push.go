package imagefactory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	requestDeadline = 2 * time.Minute
	parallelUploads = 4
	maxErrorBody    = 4 << 10
)

// Target is the repository to push to.
type Target struct {
	// Host is "127.0.0.1:port"; plain HTTP is spoken.
	Host string
	// Repository is the name without host and tag.
	Repository string
	// Username and Password are shown when the registry asks, for a token too.
	Username, Password string
}

// MustPush pushes to an open registry as name ("busybox:1") and returns the
// full reference ("127.0.0.1:5000/busybox:1").
func MustPush(t testing.TB, host, name string, a *Artifact) string {
	t.Helper()
	repository, tag, _ := strings.Cut(name, ":")
	if err := Push(t.Context(), Target{Host: host, Repository: repository}, a, tag); err != nil {
		t.Fatal(err)
	}
	return host + "/" + name
}

// Push uploads everything that the artifact refers to and gives it the tags.
// Without a tag it can only be pulled by digest.
func Push(ctx context.Context, to Target, a *Artifact, tags ...string) error {
	p := &pusher{to: to, client: &http.Client{Timeout: requestDeadline, Transport: &http.Transport{}}}
	defer p.client.CloseIdleConnections()
	if err := p.authorize(ctx); err != nil {
		return fmt.Errorf("log in to %s: %w", to.Host, err)
	}
	if err := p.artifact(ctx, a, append([]string{a.Descriptor.Digest.String()}, tags...)); err != nil {
		return fmt.Errorf("push %s/%s: %w", to.Host, to.Repository, err)
	}
	return nil
}

type pusher struct {
	to     Target
	client *http.Client
	// authorization is the header's value; empty for an open registry.
	authorization string
}

func (p *pusher) url(suffix string) string {
	return "http://" + p.to.Host + "/v2/" + p.to.Repository + suffix
}

// artifact pushes blobs and children before what refers to them, as the
// registry demands.
func (p *pusher) artifact(ctx context.Context, a *Artifact, names []string) error {
	for _, child := range a.children {
		if err := p.artifact(ctx, child, []string{child.Descriptor.Digest.String()}); err != nil {
			return err
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelUploads)
	for _, b := range a.blobs {
		group.Go(func() error { return p.blob(groupCtx, b) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, name := range slices.Compact(names) {
		if name == "" {
			continue
		}
		header := http.Header{"Content-Type": {a.root.MediaType}}
		if _, err := p.do(ctx, http.MethodPut, p.url("/manifests/"+name), header, a.root.data, http.StatusCreated); err != nil {
			return err
		}
	}
	return nil
}

func (p *pusher) blob(ctx context.Context, b blob) error {
	if _, err := p.do(ctx, http.MethodHead, p.url("/blobs/"+b.Digest.String()), nil, nil, http.StatusOK); err == nil {
		return nil
	}
	answer, err := p.do(ctx, http.MethodPost, p.url("/blobs/uploads/"), nil, nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	location, err := url.Parse(answer.Get("Location"))
	if err != nil {
		return fmt.Errorf("read upload location: %w", err)
	}
	query := location.Query()
	query.Set("digest", b.Digest.String())
	location.RawQuery = query.Encode()
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	_, err = p.do(ctx, http.MethodPut, location.String(), header, b.data, http.StatusCreated)
	return err
}

// do sends one request and returns the header of an answer with the wanted
// status.
func (p *pusher) do(ctx context.Context, method, address string, header http.Header, body []byte, want int) (http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if header != nil {
		request.Header = header
	}
	if p.authorization != "" {
		request.Header.Set("Authorization", p.authorization)
	}
	answer, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxErrorBody))
	err = errors.Join(err, answer.Body.Close())
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != want {
		return nil, fmt.Errorf("%s %s: status %s: %s", method, address, answer.Status, text)
	}
	return answer.Header, nil
}

var challenge = regexp.MustCompile(`(realm|service)="([^"]*)"`)

// authorize asks the registry how it wants to be spoken to and obtains what it
// wants for the whole push.
func (p *pusher) authorize(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.to.Host+"/v2/", http.NoBody)
	if err != nil {
		return err
	}
	answer, err := p.client.Do(request)
	if err != nil {
		return err
	}
	if err := answer.Body.Close(); err != nil {
		return err
	}
	wanted := answer.Header.Get("WWW-Authenticate")
	request.SetBasicAuth(p.to.Username, p.to.Password)
	switch {
	case answer.StatusCode != http.StatusUnauthorized:
	case strings.HasPrefix(wanted, "Bearer "):
		return p.token(ctx, wanted, request.Header.Get("Authorization"))
	default:
		p.authorization = request.Header.Get("Authorization")
	}
	return nil
}

func (p *pusher) token(ctx context.Context, wanted, basic string) error {
	query := url.Values{"scope": {"repository:" + p.to.Repository + ":pull,push"}}
	realm := ""
	for _, m := range challenge.FindAllStringSubmatch(wanted, -1) {
		if m[1] == "realm" {
			realm = m[2]
		} else {
			query.Set(m[1], m[2])
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, realm+"?"+query.Encode(), http.NoBody)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", basic)
	answer, err := p.client.Do(request)
	if err != nil {
		return err
	}
	var token struct {
		Token string `json:"token"`
	}
	err = json.NewDecoder(answer.Body).Decode(&token)
	if err = errors.Join(err, answer.Body.Close()); err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	p.authorization = "Bearer " + token.Token
	return nil
}
