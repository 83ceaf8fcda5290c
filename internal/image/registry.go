package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"
)

// userAgent is what registries see as the client.
const userAgent = "berth"

// firstByteFactor is how many times longer the first byte of an answer may take: registries that
// fetch from others have nothing to send before.
const firstByteFactor = 2

// anyHost is the directory for hosts that have none of their own.
const anyHost = "_default"

// maxResponseHeader bounds the headers of an answer.
const maxResponseHeader = 1 << 20

// registry speaks to the registries, mirrors included, of one pull.
type registry struct {
	opts       Options
	auth       Auth
	host       string // of the reference
	repository string
	authFile   authFile
	slow       func() // called when a host is so slow that other pulls must not wait for this one

	mu         sync.Mutex
	hosts      map[string][]docker.RegistryHost
	senders    map[string][]string // hosts that a blob or manifest came from, by digest
	wrong      map[string]bool     // hosts that sent something else than was asked for
	failed     map[string]error    // hosts that are not asked any more, and why
	broken     map[string]int      // answers that broke off, by host
	transports []*http.Transport
}

func newRegistry(opts Options, named reference.Named, auth Auth, slow func()) *registry {
	return &registry{
		opts: opts, auth: auth, authFile: authFile(opts.AuthFile), slow: slow,
		host: reference.Domain(named), repository: reference.Path(named),
		hosts: map[string][]docker.RegistryHost{}, senders: map[string][]string{}, wrong: map[string]bool{},
		failed: map[string]error{}, broken: map[string]int{},
	}
}

// close ends the connections that are kept for more requests.
func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, transport := range r.transports {
		transport.CloseIdleConnections()
	}
}

// resolve asks what a reference stands for and returns what fetches it.
func (r *registry) resolve(ctx context.Context, ref string) (ocispec.Descriptor, remotes.Fetcher, error) {
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(host string) ([]docker.RegistryHost, error) { return r.lookup(ctx, host) },
		Headers: http.Header{"User-Agent": {userAgent}},
	})
	name, target, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return target, nil, fmt.Errorf("resolve: %w", remoteError{err})
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return target, nil, fmt.Errorf("prepare to fetch: %w", err)
	}
	return target, fetcher, nil
}

// lookup returns where to ask for a host's images. It is asked several times
// in a pull; one answer keeps connections and tokens.
func (r *registry) lookup(ctx context.Context, host string) ([]docker.RegistryHost, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if hosts, ok := r.hosts[host]; ok {
		return hosts, nil
	}
	hosts, err := config.ConfigureHosts(ctx, config.HostOptions{HostDir: r.hostDir, UpdateClient: r.prepareClient})(host)
	if err != nil {
		return nil, fmt.Errorf("configure registry %s: %w", host, err)
	}
	for i := range hosts {
		// The library puts the registry itself behind its mirrors.
		r.bind(&hosts[i], hosts[i].Host != hosts[len(hosts)-1].Host && hosts[i].Host != host)
	}
	r.hosts[host] = hosts
	return hosts, nil
}

// bind puts an endpoint, with a login of its own, between the library and a host.
func (r *registry) bind(host *docker.RegistryHost, isMirror bool) {
	e := newEndpoint(r, *host)
	l := &login{
		endpoint: e, header: host.Header, tokens: map[string]token{},
		client: &http.Client{Transport: e.next, CheckRedirect: checkTokenRedirect},
		find:   func(ctx context.Context) (account, error) { return r.findAccount(ctx, e.host, isMirror) },
	}
	e.login = l
	host.Authorizer = l
	host.Client = &http.Client{Transport: e, CheckRedirect: e.checkRedirect}
}

// noteSender remembers which host answers for a digest.
func (r *registry) noteSender(host, digest string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.senders[digest], host) {
		r.senders[digest] = append(r.senders[digest], host)
	}
}

// noteBroken counts the answers of a host that broke off.
func (r *registry) noteBroken(host string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken[host]++
	return r.broken[host]
}

// failure returns why a host is not asked any more.
func (r *registry) failure(host string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed[host]
}

// fail stops asking a host if there is another one, and says whether there is.
func (r *registry) fail(host string, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, hosts := range r.hosts {
		for _, other := range hosts {
			if other.Host != host && r.failed[other.Host] == nil && other.Capabilities.Has(docker.HostCapabilityPull) {
				r.failed[host] = err
				return true
			}
		}
	}
	return false
}

// passOver stops asking the host that sent something else than a digest, and says whether there is
// another one. A blob may have come from several hosts, of which the later ones only continued it.
func (r *registry) passOver(digest digest.Digest, err error) (host string, more bool) {
	r.mu.Lock()
	senders := slices.DeleteFunc(r.senders[digest.String()], func(host string) bool { return r.wrong[host] })
	delete(r.senders, digest.String())
	if len(senders) > 0 {
		host = senders[0]
		r.wrong[host] = true
	}
	continued := r.failed[host] != nil
	r.mu.Unlock()
	return host, host != "" && (continued || r.fail(host, err))
}

// hostDir finds the configuration of a host. The library skips a hosts.toml
// that it cannot read, and with it the mirrors that an administrator relies
// on, so it is read here first.
func (r *registry) hostDir(host string) (string, error) {
	dir, err := r.findHostDir(host)
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "hosts.toml")
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return dir, nil
	}
	if err != nil {
		return "", fmt.Errorf("read registry configuration: %w", err)
	}
	var anything map[string]any
	if err := toml.Unmarshal(data, &anything); err != nil {
		if where, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := where.Position()
			return "", fmt.Errorf("%s:%d:%d: %w: %w", file, line, column, err, errdefs.ErrInvalidArgument)
		}
		return "", fmt.Errorf("%s: %w: %w", file, err, errdefs.ErrInvalidArgument)
	}
	return dir, nil
}

// findHostDir returns the first directory for a host. One that is for any host comes last.
func (r *registry) findHostDir(host string) (string, error) {
	fallback := ""
	for _, root := range append([]string{r.opts.RegistryConfigDir}, r.opts.RegistryConfigDirs...) {
		if root == "" {
			continue
		}
		dir, err := config.HostDirFromRoot(root)(host)
		switch {
		case errdefs.IsNotFound(err):
		case err != nil:
			return "", fmt.Errorf("find configuration of registry %s: %w", host, err)
		case filepath.Base(dir) != anyHost:
			return dir, nil
		case fallback == "":
			fallback = dir
		}
	}
	if fallback == "" {
		return "", errdefs.ErrNotFound
	}
	return fallback, nil
}

// prepareClient bounds how long a registry may be silent and how much it may say before a body.
func (r *registry) prepareClient(client *http.Client) error {
	if _, done := client.Transport.(*stallTransport); done {
		return nil // copied from a client that came here before
	}
	if transport, ok := client.Transport.(*http.Transport); ok {
		transport.MaxResponseHeaderBytes = maxResponseHeader
		r.transports = append(r.transports, transport)
	}
	client.Transport = &stallTransport{next: client.Transport, limits: newLimits(r.opts), slow: r.slow}
	return nil
}
