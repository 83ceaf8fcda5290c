package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

const (
	// maxTokenAnswer bounds what a token service may send.
	maxTokenAnswer = 1 << 20
	// maxTokenLife bounds how long a token is used.
	maxTokenLife = 24 * time.Hour
)

// token is what a token service gives.
type token struct {
	value   string
	expires time.Time // zero if the service does not say when
}

func (t token) expired(now time.Time) bool { return !t.expires.IsZero() && now.After(t.expires) }

// fetchToken asks the token service. With an account it is asked by POST (OAuth 2) first and, where
// the service does not know that, by GET. The caller holds l.mu.
func (l *login) fetchToken(ctx context.Context, scopes []string, shown account) (token, error) {
	if shown.secret != "" && l.realm.Scheme == "http" && !l.endpoint.plain {
		return token{}, fmt.Errorf("%w: the token service %s of an HTTPS registry is not encrypted, and gets no account",
			docker.ErrInvalidAuthorization, l.realm.Host)
	}
	if shown.secret != "" {
		got, err := l.askToken(ctx, http.MethodPost, l.tokenForm(scopes, shown), account{})
		status, refused := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
		switch {
		case err == nil:
			return got, nil
		case !errors.Is(err, errNoToken) && (!refused || status.StatusCode == http.StatusTooManyRequests):
			return token{}, fmt.Errorf("fetch token: %w", err)
		}
	}
	query := url.Values{"scope": scopes}
	if service := l.challenge.Parameters["service"]; service != "" {
		query.Set("service", service)
	}
	got, err := l.askToken(ctx, http.MethodGet, query, shown)
	if err != nil {
		return token{}, fmt.Errorf("fetch token: %w", err)
	}
	return got, nil
}

// tokenForm is the body of a POST. An account without a user name has an identity token.
func (l *login) tokenForm(scopes []string, shown account) url.Values {
	form := url.Values{
		"scope": {strings.Join(scopes, " ")}, "service": {l.challenge.Parameters["service"]}, "client_id": {"berth"},
	}
	if shown.user == "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", shown.secret)
		return form
	}
	form.Set("grant_type", "password")
	form.Set("username", shown.user)
	form.Set("password", shown.secret)
	return form
}

func (l *login) askToken(ctx context.Context, method string, values url.Values, shown account) (token, error) {
	address, body := *l.realm, ""
	if method == http.MethodPost {
		body = values.Encode()
	} else {
		query := address.Query()
		for key := range values {
			query[key] = values[key]
		}
		address.RawQuery = query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, method, address.String(), strings.NewReader(body))
	if err != nil {
		return token{}, err
	}
	if l.endpoint.isOrigin(r.URL) {
		for key, values := range l.header {
			r.Header[http.CanonicalHeaderKey(key)] = values
		}
	}
	r.Header.Set("User-Agent", userAgent)
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else if shown.secret != "" {
		r.SetBasicAuth(shown.user, shown.secret)
	}
	answer, err := l.client.Do(r)
	if err != nil {
		return token{}, err
	}
	defer answer.Body.Close()
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return token{}, remoteerrors.NewUnexpectedStatusErr(answer)
	}
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxTokenAnswer+1))
	if err != nil {
		return token{}, err
	}
	return readToken(data, time.Now())
}

// checkTokenRedirect keeps the account at the token service. The body of a POST, which has it, is sent
// on to no other host, and other requests go there without it.
func checkTokenRedirect(r *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) >= maxRedirects:
		return fmt.Errorf("token service redirected more than %d times: %w", maxRedirects, errdefs.ErrUnavailable)
	case r.URL.Scheme == first.Scheme && r.URL.Host == first.Host:
		return nil
	case via[0].Method == http.MethodPost:
		return http.ErrUseLastResponse
	case first.Scheme == "https" && r.URL.Scheme != "https":
		return fmt.Errorf("token service redirected from HTTPS to HTTP: %w", errdefs.ErrFailedPrecondition)
	}
	r.Header = http.Header{"User-Agent": {userAgent}}
	return nil
}

var errNoToken = errors.New("the answer of the token service has no token")

// readToken reads the answer of a token service. Services differ in the name of the token and in the
// type of its lifetime; when it was issued does not matter, as clocks differ too.
func readToken(data []byte, now time.Time) (token, error) {
	if len(data) > maxTokenAnswer {
		return token{}, fmt.Errorf("the answer of the token service is larger than %d bytes: %w", maxTokenAnswer, errdefs.ErrFailedPrecondition)
	}
	var answer struct {
		Token       any `json:"token"`
		AccessToken any `json:"access_token"`
		ExpiresIn   any `json:"expires_in"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return token{}, fmt.Errorf("%w: %w", errNoToken, err)
	}
	var got token
	for _, value := range []any{answer.Token, answer.AccessToken} {
		if text, ok := value.(string); ok && text != "" {
			got.value = text
		}
	}
	if got.value == "" {
		return token{}, errNoToken
	}
	seconds, ok := answer.ExpiresIn.(float64)
	if text, isText := answer.ExpiresIn.(string); isText {
		parsed, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		seconds, ok = parsed, err == nil
	}
	if ok && seconds > 0 {
		life := maxTokenLife
		if seconds < maxTokenLife.Seconds() {
			life = time.Duration(seconds * float64(time.Second))
		}
		got.expires = now.Add(life)
	}
	return got, nil
}
