package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"
)

// maxAuthFile bounds the size of an auth file.
const maxAuthFile = 1 << 20

// authFile is the path of a file with accounts, in the form of Docker's config.json. Empty, or
// without a file there, it has none.
type authFile string

type authFileContent struct {
	Auths map[string]struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	} `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

// find returns the account for a host and, if it is given, a repository there: keys of the file may
// have a path, and the longest one that fits is taken.
func (f authFile) find(ctx context.Context, host, repository string) (account, error) {
	content, err := f.read()
	if err != nil {
		return account{}, err
	}
	host = serverHost(host)
	for name, program := range content.CredHelpers {
		if serverHost(name) == host {
			return askHelper(ctx, program, host)
		}
	}
	for scope := host + "/" + repository; ; {
		for name, entry := range content.Auths {
			if authScope(name) != strings.TrimSuffix(scope, "/") {
				continue
			}
			found, err := Auth{
				Auth: entry.Auth, Username: entry.Username, Password: entry.Password,
				IdentityToken: entry.IdentityToken, RegistryToken: entry.RegistryToken,
			}.account()
			if err != nil {
				return account{}, fmt.Errorf("image.auth_file %s: auths[%q]: %w", string(f), name, err)
			}
			if found != (account{}) {
				return found, nil
			}
		}
		end := strings.LastIndexByte(scope, '/')
		if end < 0 {
			break
		}
		scope = scope[:end]
	}
	if content.CredsStore != "" {
		return askHelper(ctx, content.CredsStore, host)
	}
	return account{}, nil
}

// authScope returns what a key of auths is for: a host, or a host and the beginning of a repository.
func authScope(name string) string {
	withoutScheme := strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://")
	_, path, _ := strings.Cut(withoutScheme, "/")
	path = strings.Trim(path, "/")
	if path == "" || path == "v1" || path == "v2" || withoutScheme != name {
		return serverHost(name)
	}
	return serverHost(name) + "/" + path
}

func (f authFile) read() (content authFileContent, err error) {
	if f == "" {
		return content, nil
	}
	file, err := os.Open(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return content, nil
	}
	if err != nil {
		return content, fmt.Errorf("read image.auth_file: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxAuthFile+1))
	if err = errors.Join(err, file.Close()); err != nil {
		return content, fmt.Errorf("read image.auth_file: %w", err)
	}
	if len(data) > maxAuthFile {
		return content, fmt.Errorf("image.auth_file %s is larger than %d bytes: %w", string(f), maxAuthFile, errdefs.ErrFailedPrecondition)
	}
	if err := json.Unmarshal(data, &content); err != nil {
		return content, fmt.Errorf("image.auth_file %s is not Docker's config.json: %w: %w", string(f), err, errdefs.ErrFailedPrecondition)
	}
	return content, nil
}
