package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"
)

// registry speaks to the registries, mirrors included, of one pull.
type registry struct {
	dir   string
	stall time.Duration
	auth  Auth

	mu         sync.Mutex
	hosts      map[string][]docker.RegistryHost
	senders    map[string]string // host that a blob or manifest came from, by digest
	distrusted map[string]bool   // hosts that sent something else than was asked for
	transports []*http.Transport
}

func newRegistry(opts Options, auth Auth) *registry {
	return &registry{
		dir: opts.RegistryConfigDir, stall: opts.StallTimeout, auth: auth,
		hosts: map[string][]docker.RegistryHost{}, senders: map[string]string{}, distrusted: map[string]bool{},
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
		Headers: http.Header{"User-Agent": {"berth"}},
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
		return r.trusted(hosts), nil
	}
	hosts, err := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir: r.hostDir, Credentials: r.auth.credentials, UpdateClient: r.prepareClient,
	})(host)
	if err != nil {
		return nil, fmt.Errorf("configure registry %s: %w", host, err)
	}
	if r.auth.RegistryToken != "" {
		for i := range hosts {
			hosts[i].Authorizer = bearer{auth: r.auth}
		}
	}
	r.hosts[host] = hosts
	return hosts, nil
}

// trusted are the hosts that have sent nothing wrong. The caller holds r.mu.
func (r *registry) trusted(hosts []docker.RegistryHost) []docker.RegistryHost {
	return slices.DeleteFunc(slices.Clone(hosts), func(h docker.RegistryHost) bool { return r.distrusted[h.Host] })
}

// noteSender remembers which host answers for a digest. Where it sends us on
// to is its own doing.
func (r *registry) noteSender(asked *url.URL) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, hosts := range r.hosts {
		if slices.ContainsFunc(hosts, func(h docker.RegistryHost) bool { return h.Host == asked.Host }) {
			r.senders[path.Base(asked.Path)] = asked.Host
		}
	}
}

// passOver does without the host that sent something else than a digest from
// now on, and says whether there is another one.
func (r *registry) passOver(wrong digest.Digest) (host string, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	host, known := r.senders[wrong.String()]
	if !known || r.distrusted[host] {
		return host, false
	}
	r.distrusted[host] = true
	for _, hosts := range r.hosts {
		more = more || len(r.trusted(hosts)) > 0
	}
	return host, more
}

// hostDir finds the configuration of a host. The library skips a hosts.toml
// that it cannot read, and with it the mirrors that an administrator relies
// on, so it is read here first.
func (r *registry) hostDir(host string) (string, error) {
	if r.dir == "" {
		return "", errdefs.ErrNotFound
	}
	dir, err := config.HostDirFromRoot(r.dir)(host)
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

// prepareClient bounds how long a registry may be silent.
func (r *registry) prepareClient(client *http.Client) error {
	if _, done := client.Transport.(*patience); done {
		return nil // copied from a client that came here before
	}
	if transport, ok := client.Transport.(*http.Transport); ok {
		r.transports = append(r.transports, transport)
	}
	client.Transport = &patience{next: client.Transport, limit: r.stall, answered: r.noteSender}
	return nil
}

// credentials returns what to show to a host. Without a user name the secret
// is an identity token.
func (a Auth) credentials(host string) (user, secret string, err error) {
	if a.ServerAddress != "" && host != "" && !a.isFor(host) {
		return "", "", nil
	}
	switch {
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Username != "":
		return a.Username, a.Password, nil
	case a.Auth != "":
		decoded, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return "", "", fmt.Errorf("auth.auth is not base64: %w", errdefs.ErrInvalidArgument)
		}
		user, secret, ok := strings.Cut(string(decoded), ":")
		if !ok {
			return "", "", fmt.Errorf("auth.auth has no colon between user and password: %w", errdefs.ErrInvalidArgument)
		}
		return user, strings.Trim(secret, "\x00"), nil
	}
	return "", "", nil
}

// isFor says whether the account is for a host. The kubelet passes addresses
// with or without scheme and path.
func (a Auth) isFor(host string) bool {
	address := strings.TrimPrefix(strings.TrimPrefix(a.ServerAddress, "https://"), "http://")
	address, _, _ = strings.Cut(address, "/")
	switch address {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return host == "docker.io" || host == "index.docker.io" || host == "registry-1.docker.io"
	}
	return address == host
}

// bearer shows a token that the caller already has.
type bearer struct{ auth Auth }

// Authorize adds the token.
func (b bearer) Authorize(_ context.Context, r *http.Request) error {
	if b.auth.ServerAddress == "" || b.auth.isFor(r.URL.Host) {
		r.Header.Set("Authorization", "Bearer "+b.auth.RegistryToken)
	}
	return nil
}

// AddResponses is called when the token was not enough.
func (bearer) AddResponses(context.Context, []*http.Response) error {
	return docker.ErrInvalidAuthorization
}
