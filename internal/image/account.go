package image

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// account is what is shown to a registry. The zero value is anonymous; without a user the secret is
// an identity token.
type account struct{ user, secret, registryToken string }

// account decodes the account of a request.
func (a Auth) account() (account, error) {
	switch {
	case a.RegistryToken != "":
		return account{registryToken: a.RegistryToken}, nil
	case a.IdentityToken != "":
		return account{secret: a.IdentityToken}, nil
	case a.Username != "":
		return account{user: a.Username, secret: a.Password}, nil
	case a.Auth != "":
		return decodeAccount("auth.auth", a.Auth)
	}
	return account{}, nil
}

// decodeAccount reads the base64 form of user and password.
func decodeAccount(field, encoded string) (account, error) {
	decoded, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return account{}, fmt.Errorf("%s is not base64: %w", field, errdefs.ErrInvalidArgument)
	}
	user, secret, ok := strings.Cut(string(decoded), ":")
	if !ok {
		return account{}, fmt.Errorf("%s has no colon between user and password: %w", field, errdefs.ErrInvalidArgument)
	}
	return account{user: user, secret: strings.Trim(secret, "\x00")}, nil
}

// isFor says whether the account is for a host. Kubelet passes addresses with or without scheme and
// path.
func (a Auth) isFor(host string) bool { return serverHost(a.ServerAddress) == serverHost(host) }

// serverHost returns the host of an address, under one name for Docker Hub.
func serverHost(address string) string {
	address = strings.TrimPrefix(strings.TrimPrefix(address, "https://"), "http://")
	address, _, _ = strings.Cut(address, "/")
	switch address {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return address
}

// findAccount returns the account for an endpoint. The account of the request is for the registry of
// the reference, not for its mirrors: those get it only if it names them, or if the configuration
// says so. Else it is that of the auth file.
func (r *registry) findAccount(ctx context.Context, endpoint string, isMirror bool) (account, error) {
	given, err := r.auth.account()
	if err != nil {
		return account{}, err
	}
	allowed := !isMirror || r.opts.MirrorCredentials
	if r.auth.ServerAddress != "" {
		allowed = r.auth.isFor(endpoint) || !isMirror && r.auth.isFor(r.host)
	}
	if given != (account{}) && allowed {
		return given, nil
	}
	if !isMirror {
		found, err := r.authFile.find(ctx, r.host, r.repository)
		if err != nil || found != (account{}) || given != (account{}) {
			return found, err
		}
	}
	return r.authFile.find(ctx, endpoint, "")
}
