package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/containerd/errdefs"
)

// maxChallenges is how often one request may be answered with a challenge.
const maxChallenges = 3

// login shows an account to one endpoint, as its challenges ask for: with each request, or in
// exchange for a token from the token service that the challenge names.
type login struct {
	endpoint *endpoint
	client   *http.Client // for the token service
	header   http.Header  // that the host's configuration adds
	find     func(context.Context) (account, error)

	mu        sync.Mutex
	found     *account
	challenge *auth.Challenge
	realm     *url.URL
	tokens    map[string]token // by scope
}

// Authorize adds what the last challenge asked for. Requests to any other host get nothing.
func (l *login) Authorize(ctx context.Context, r *http.Request) error {
	if !l.endpoint.isOrigin(r.URL) {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	shown, err := l.account(ctx)
	switch {
	case err != nil:
		return err
	case shown.registryToken != "":
		r.Header.Set("Authorization", "Bearer "+shown.registryToken)
	case l.challenge == nil:
	case l.challenge.Scheme == auth.BasicAuth:
		r.SetBasicAuth(shown.user, shown.secret)
	default:
		scopes := docker.GetTokenScopes(ctx, strings.Fields(l.challenge.Parameters["scope"]))
		key := strings.Join(scopes, " ")
		have, ok := l.tokens[key]
		if !ok || have.expired(time.Now()) {
			if have, err = l.fetchToken(ctx, scopes, shown); err != nil {
				return err
			}
			l.tokens[key] = have
		}
		r.Header.Set("Authorization", "Bearer "+have.value)
	}
	return nil
}

// account finds the account once. The caller holds l.mu.
func (l *login) account(ctx context.Context) (account, error) {
	if l.found == nil {
		found, err := l.find(ctx)
		if err != nil {
			return account{}, err
		}
		l.found = &found
	}
	return *l.found, nil
}

// AddResponses takes the challenge of the last answer to a request. The error says that there is no
// use in sending it again.
func (l *login) AddResponses(ctx context.Context, answers []*http.Response) error {
	last := answers[len(answers)-1]
	if !l.endpoint.isOrigin(last.Request.URL) {
		return fmt.Errorf("%s is not the registry: %w", last.Request.URL.Host, errdefs.ErrNotImplemented)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	shown, err := l.account(ctx)
	if err != nil {
		return err
	}
	if shown.registryToken != "" {
		return docker.ErrInvalidAuthorization
	}
	for _, challenge := range auth.ParseAuthHeader(last.Header) {
		switch challenge.Scheme {
		case auth.BearerAuth:
			return l.useBearer(challenge, answers)
		case auth.BasicAuth:
			if shown.user == "" && shown.secret == "" {
				return fmt.Errorf("%w: no account for %s", docker.ErrInvalidAuthorization, l.endpoint.host)
			}
			if last.Request.Header.Get("Authorization") != "" && l.challenge != nil && l.challenge.Scheme == auth.BasicAuth {
				return fmt.Errorf("%w: the account was refused", docker.ErrInvalidAuthorization)
			}
			l.challenge = &challenge
			return nil
		case auth.DigestAuth: // containerd's library has no support for it
		}
	}
	return fmt.Errorf("registry asks for no known kind of authorization: %w", errdefs.ErrNotImplemented)
}

// useBearer prepares to fetch a token. A token that was refused may have expired; a second one
// with the same scope is not better. The caller holds l.mu.
func (l *login) useBearer(challenge auth.Challenge, answers []*http.Response) error {
	before := 0
	for _, answer := range answers {
		if answer.StatusCode == http.StatusUnauthorized {
			before++
		}
	}
	same := l.challenge != nil && l.challenge.Parameters["scope"] == challenge.Parameters["scope"]
	if before > maxChallenges || before > 1 && same {
		return fmt.Errorf("%w: the token was refused", docker.ErrInvalidAuthorization)
	}
	realm, err := answers[len(answers)-1].Request.URL.Parse(challenge.Parameters["realm"])
	switch {
	case challenge.Parameters["realm"] == "":
		err = errors.New("it is empty")
	case err == nil && (realm.Scheme != "http" && realm.Scheme != "https" || realm.Host == ""):
		err = fmt.Errorf("%q is no HTTP address", realm.Redacted())
	}
	if err != nil {
		return fmt.Errorf("%w: realm of the registry's challenge: %w", docker.ErrInvalidAuthorization, err)
	}
	l.challenge, l.realm, l.tokens = &challenge, realm, map[string]token{}
	return nil
}
