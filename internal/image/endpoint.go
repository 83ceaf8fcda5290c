package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// maxRedirects is how often a request may be sent on.
	maxRedirects = 10
	// maxBroken is how many answers of a mirror may break off before the next host is asked.
	maxBroken = 2
)

// endpoint is one host that serves the images of a registry: the registry itself or a mirror. It
// sends the requests of containerd's resolver, keeps credentials and configured headers at the
// host that they are for, and makes up for answers that the resolver does not accept.
type endpoint struct {
	registry *registry
	host     string
	plain    bool // plain HTTP is configured, or what a host on loopback may answer with
	encrypt  bool // HTTPS is tried
	next     http.RoundTripper
	login    docker.Authorizer
}

// newEndpoint puts an endpoint behind the configuration of one host.
func newEndpoint(r *registry, host docker.RegistryHost) *endpoint {
	// Where both are tried, the library has put its fallback around our transport.
	_, direct := host.Client.Transport.(*stallTransport)
	return &endpoint{
		registry: r, host: host.Host, next: host.Client.Transport,
		plain: host.Scheme == "http" || !direct, encrypt: host.Scheme == "https",
	}
}

// isOrigin says whether an address is at the host itself: same scheme, name and port.
func (e *endpoint) isOrigin(u *url.URL) bool {
	if u.Scheme == "https" && !e.encrypt || u.Scheme == "http" && !e.plain {
		return false
	}
	return strings.EqualFold(canonicalHost(u.Scheme, u.Host), canonicalHost(u.Scheme, e.host))
}

// canonicalHost returns host and port without the scheme's default port.
func canonicalHost(scheme, host string) string {
	if scheme == "https" {
		return strings.TrimSuffix(host, ":443")
	}
	return strings.TrimSuffix(host, ":80")
}

// checkRedirect lets an answer send a request on. To the host itself it goes with credentials,
// anywhere else without. Unencrypted answers are only accepted for content that has a digest.
func (e *endpoint) checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("registry redirected more than %d times: %w", maxRedirects, errdefs.ErrUnavailable)
	}
	if e.isOrigin(r.URL) {
		return e.login.Authorize(r.Context(), r)
	}
	if _, err := digest.Parse(path.Base(via[0].URL.Path)); err != nil && r.URL.Scheme == "http" && !e.plain {
		return fmt.Errorf("registry redirected a tag from HTTPS to HTTP: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// RoundTrip sends one request, which may be that of a redirect.
func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := e.registry.failure(e.host); err != nil {
		return nil, err
	}
	r = e.bind(r)
	answer, err := e.answer(r)
	if _, stalled := errors.AsType[*stallError](err); stalled {
		e.registry.fail(e.host, err)
	}
	if err != nil {
		return nil, err
	}
	if e.isOrigin(r.URL) && answer.StatusCode < http.StatusBadRequest {
		e.registry.noteSender(e.host, path.Base(r.URL.Path))
	}
	answer.Body = &endpointBody{ReadCloser: answer.Body, endpoint: e, request: r}
	return answer, nil
}

// bind returns the request with what may be sent to its host. Go's client passes most headers on to
// any host, and credentials to any port of the same one.
func (e *endpoint) bind(r *http.Request) *http.Request {
	header := http.Header{}
	for key, values := range r.Header {
		switch key {
		case "Accept", "Range", "User-Agent":
			header[key] = values
		default:
			if e.isOrigin(r.URL) {
				header[key] = values
			}
		}
	}
	// Digests are those of the bytes as they are stored.
	header.Set("Accept-Encoding", "identity")
	bound := r.Clone(r.Context())
	bound.Header = header
	return bound
}

func (e *endpoint) answer(r *http.Request) (*http.Response, error) {
	switch {
	case r.Method == http.MethodHead:
		return e.head(r)
	case r.Header.Get("Range") != "":
		return e.part(r)
	}
	answer, err := e.next.RoundTrip(r)
	if err == nil {
		e.keepEncoding(r, answer)
	}
	return answer, err
}

// head asks for the type, digest and size of a manifest. If the answer has not all of them, or the
// registry refuses HEAD, the manifest itself is read, as Docker does.
func (e *endpoint) head(r *http.Request) (*http.Response, error) {
	answer, err := e.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	switch status := answer.StatusCode; {
	case status < http.StatusMultipleChoices && describesManifest(answer), status == http.StatusTooManyRequests,
		status >= http.StatusMultipleChoices && status < http.StatusBadRequest,
		status == http.StatusUnauthorized && r.Header.Get("Authorization") == "":
		return answer, nil
	}
	get := r.Clone(r.Context())
	get.Method = http.MethodGet
	whole, err := e.next.RoundTrip(get)
	if err != nil {
		return nil, errors.Join(err, answer.Body.Close())
	}
	if err := answer.Body.Close(); err != nil {
		return nil, errors.Join(err, whole.Body.Close())
	}
	if whole.StatusCode != http.StatusOK {
		return whole, nil
	}
	return describeManifest(r, whole)
}

// part asks for the rest of a blob. If the registry refuses, or sends another part, the whole blob is
// asked for: the resolver skips what it has.
func (e *endpoint) part(r *http.Request) (*http.Response, error) {
	answer, err := e.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	from, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	switch answer.StatusCode {
	case http.StatusPartialContent:
		if strings.HasPrefix(answer.Header.Get("Content-Range"), "bytes "+from+"-") {
			return answer, nil
		}
	case http.StatusOK:
		answer.Header.Del("Content-Range")
		e.keepEncoding(r, answer)
		return answer, nil
	case http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented, http.StatusBadRequest:
	default:
		return answer, nil
	}
	if err := answer.Body.Close(); err != nil {
		return nil, err
	}
	whole := r.Clone(r.Context())
	whole.Header.Del("Range")
	if answer, err = e.next.RoundTrip(whole); err == nil {
		e.keepEncoding(r, answer)
	}
	return answer, err
}

// keepEncoding takes a blob as it is if it has the promised size: storage that was given a compressed
// layer may call its compression a Content-Encoding.
func (e *endpoint) keepEncoding(r *http.Request, answer *http.Response) {
	if size, ok := r.Context().Value(blobSize{}).(int64); ok && answer.ContentLength == size {
		answer.Header.Del("Content-Encoding")
	}
}

// blobSize is the key of a context's promised size of the blob that is fetched.
type blobSize struct{}

// endpointBody lets the resolver resume a transfer, at the same host or the next one.
type endpointBody struct {
	io.ReadCloser
	endpoint *endpoint
	request  *http.Request
}

// Read makes of each way in which a connection breaks the one after which the resolver resumes.
func (b *endpointBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == nil || errors.Is(err, io.EOF) || b.request.Context().Err() != nil {
		return n, err
	}
	r := b.endpoint.registry
	if _, stalled := errors.AsType[*stallError](err); stalled {
		if !r.fail(b.endpoint.host, err) {
			return n, err
		}
	} else if r.noteBroken(b.endpoint.host) > maxBroken {
		r.fail(b.endpoint.host, err)
	}
	return n, io.ErrUnexpectedEOF
}

// describesManifest says whether the answer to HEAD has all that the resolver needs.
func describesManifest(answer *http.Response) bool {
	_, err := digest.Parse(answer.Header.Get("Docker-Content-Digest"))
	return err == nil && answer.ContentLength > 0 && isManifestType(contentType(answer))
}

// describeManifest reads a manifest and returns the answer to HEAD that is right for it.
func describeManifest(r *http.Request, whole *http.Response) (*http.Response, error) {
	data, err := io.ReadAll(io.LimitReader(whole.Body, maxManifest+1))
	if err = errors.Join(err, whole.Body.Close()); err != nil {
		return nil, err
	}
	if len(data) > maxManifest {
		return nil, fmt.Errorf("manifest is larger than %d bytes: %w", maxManifest, errdefs.ErrFailedPrecondition)
	}
	kind := contentType(whole)
	if !isManifestType(kind) {
		if kind, err = manifestType(data); err != nil {
			return nil, err
		}
	}
	whole.Header.Set("Content-Type", kind)
	whole.Header.Set("Docker-Content-Digest", digest.FromBytes(data).String())
	whole.Header.Del("Content-Encoding")
	whole.ContentLength, whole.Body, whole.Request = int64(len(data)), io.NopCloser(bytes.NewReader(nil)), r
	return whole, nil
}
