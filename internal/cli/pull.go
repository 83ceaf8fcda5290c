package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "github.com/berth-runtime/berth/api/berth/v1"
)

// credentialFlags say who pulls.
type credentialFlags struct {
	user string
	file string
}

func (f *credentialFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.user, "creds", "", "registry credentials as `USER[:PASSWORD]`; prompts for a missing password")
	cmd.Flags().StringVar(&f.file, "auth-file", "", "credentials `FILE` in Docker's format, such as ~/.docker/config.json")
}

func (a *app) pullCommand() *cobra.Command {
	var creds credentialFlags
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull IMAGE…",
		Short: "Pull images and print their IDs",
		Args:  takes(cobra.MinimumNArgs(1), "the names of images"),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				pulled := map[string]string{}
				for _, ref := range refs {
					id, err := a.pull(ctx, n, ref, creds, quiet)
					if err != nil {
						return err
					}
					pulled[ref] = id
					if a.format == formatTable {
						if _, err := fmt.Fprintln(a.Out, id); err != nil {
							return err
						}
					}
				}
				if a.format == formatTable {
					return nil
				}
				return a.structured(pulled)
			})
		},
	}
	creds.add(cmd)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "hide progress")
	return cmd
}

// pull pulls one image and shows how far it has come.
func (a *app) pull(ctx context.Context, n *node, ref string, creds credentialFlags, quiet bool) (string, error) {
	auth, err := a.credentials(ref, creds)
	if err != nil {
		return "", err
	}
	watchCtx, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	if !quiet {
		p := a.newProgress(ref)
		watch.Go(func() { p.run(watchCtx, n.berth) })
	}
	resp, err := n.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
	stop()
	watch.Wait()
	if err != nil {
		return "", pullError(ctx, ref, err)
	}
	return resp.ImageRef, nil
}

func pullError(ctx context.Context, ref string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("pull %s: %w", ref, context.Cause(ctx))
	}
	text := explain(err)
	if !strings.Contains(text, "pull ") { // berthd says so itself
		err = fmt.Errorf("pull %s: %w", ref, err)
	}
	switch {
	case strings.HasPrefix(text, "RegistryUnavailable"):
		return &hintedError{err: err, next: "The registry does not answer as it should. Check its name, the network, and mirrors in the registry_config_dir of: berth config show"}
	case status.Code(err) == codes.NotFound:
		return &hintedError{err: err, next: "Check the name and the tag. A private registry may also hide what it holds: give --creds USER"}
	}
	return err
}

// credentials returns what to log in with, nil to pull without.
func (a *app) credentials(ref string, f credentialFlags) (*runtimeapi.AuthConfig, error) {
	switch {
	case f.user != "" && f.file != "":
		return nil, errors.New("--creds and --auth-file exclude each other")
	case f.user != "":
		user, password, ok := strings.Cut(f.user, ":")
		if !ok {
			var err error
			if password, err = a.askPassword(user, ref); err != nil {
				return nil, err
			}
		}
		return &runtimeapi.AuthConfig{Username: user, Password: password}, nil
	case f.file != "":
		return fileCredentials(f.file, ref)
	}
	return nil, nil //nolint:nilnil // no credentials is a way to pull
}

func (a *app) askPassword(user, ref string) (string, error) {
	fd, ok := terminal(a.In)
	if !ok {
		return "", errors.New("--creds: no password, and no terminal to prompt for it; use USER:PASSWORD or --auth-file")
	}
	fmt.Fprintf(a.Err, "Password of %s for %s: ", user, ref)
	password, err := term.ReadPassword(fd)
	fmt.Fprintln(a.Err)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return string(password), nil
}

// authFile is the part of a docker configuration that holds credentials.
type authFile struct {
	Auths map[string]struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	} `json:"auths"`
}

// fileCredentials finds the credentials for the registry of an image.
func fileCredentials(file, ref string) (*runtimeapi.AuthConfig, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	var all authFile
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("read credentials from %s: %w", file, err)
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	host := reference.Domain(named)
	for _, key := range []string{host, "https://" + host, "http://" + host, "https://index." + host + "/v1/"} {
		entry, ok := all.Auths[key]
		if !ok {
			continue
		}
		if _, err := base64.StdEncoding.DecodeString(entry.Auth); err != nil {
			return nil, fmt.Errorf("credentials for %s in %s: auth is not base64", host, file)
		}
		return &runtimeapi.AuthConfig{
			Auth: entry.Auth, Username: entry.Username, Password: entry.Password,
			IdentityToken: entry.IdentityToken, RegistryToken: entry.RegistryToken, ServerAddress: host,
		}, nil
	}
	return nil, fmt.Errorf("%s has no credentials for %s", file, host)
}

// layerWord is the state of a layer in a word.
func layerWord(s berthv1.LayerState) string {
	switch s {
	case berthv1.LayerState_LAYER_STATE_WAITING:
		return "waiting"
	case berthv1.LayerState_LAYER_STATE_DOWNLOADING:
		return "downloading"
	case berthv1.LayerState_LAYER_STATE_UNPACKING:
		return "unpacking"
	case berthv1.LayerState_LAYER_STATE_DONE:
		return "done"
	case berthv1.LayerState_LAYER_STATE_EXISTS:
		return "already here"
	case berthv1.LayerState_LAYER_STATE_UNSPECIFIED:
	}
	return ""
}
