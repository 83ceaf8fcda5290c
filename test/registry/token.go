package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	tokenService  = "berth-test-registry"
	tokenIssuer   = "berth-test-issuer"
	tokenLifetime = 5 * time.Minute
	// es256Half is the length of each of the two numbers in an ES256 signature.
	es256Half = 32
)

// tokenServer is the authorization service of the distribution token
// specification: GET with basic credentials, or an OAuth2 POST.
type tokenServer struct {
	realm       string
	certificate []byte // PEM, what the registry trusts

	opts   Options
	key    *ecdsa.PrivateKey
	chain  string // base64 DER of the certificate, sent in each token
	server *http.Server
	done   chan error
}

func startTokenServer(ctx context.Context, opts Options) (*tokenServer, error) {
	s := &tokenServer{opts: opts, done: make(chan error, 1)}
	if err := s.makeKey(); err != nil {
		return nil, fmt.Errorf("make token key: %w", err)
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for token requests: %w", err)
	}
	s.realm = "http://" + l.Addr().String() + "/token"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /token", s.get)
	mux.HandleFunc("POST /token", s.post)
	s.server = &http.Server{Handler: mux, ReadHeaderTimeout: startDeadline}
	go func() { s.done <- s.server.Serve(l) }()
	return s, nil
}

func (s *tokenServer) stop() error {
	err := s.server.Close()
	if served := <-s.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

func (s *tokenServer) makeKey() (err error) {
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: tokenIssuer},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &s.key.PublicKey, s.key)
	if err != nil {
		return err
	}
	s.chain = base64.StdEncoding.EncodeToString(der)
	s.certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return nil
}

// get answers with a token for clients that show the account. A caller without any
// credentials gets a token that allows nothing, as public services do.
func (s *tokenServer) get(w http.ResponseWriter, r *http.Request) {
	user, password, given := r.BasicAuth()
	allowed := given && user == s.opts.Username && password == s.opts.Password
	if given && !allowed {
		http.Error(w, "unknown account", http.StatusUnauthorized)
		return
	}
	s.answer(w, r.URL.Query()["scope"], allowed, "token")
}

func (s *tokenServer) post(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var allowed bool
	switch r.Form.Get("grant_type") {
	case "password":
		allowed = r.Form.Get("username") == s.opts.Username && r.Form.Get("password") == s.opts.Password
	case "refresh_token":
		allowed = s.opts.IdentityToken != "" && r.Form.Get("refresh_token") == s.opts.IdentityToken
	}
	if !allowed {
		http.Error(w, "unknown account", http.StatusUnauthorized)
		return
	}
	s.answer(w, strings.Fields(r.Form.Get("scope")), true, "access_token")
}

type tokenAccess struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// answer grants every scope asked for, or none.
func (s *tokenServer) answer(w http.ResponseWriter, scopes []string, allowed bool, field string) {
	access := []tokenAccess{}
	for _, scope := range scopes {
		parts := strings.Split(scope, ":")
		if !allowed || len(parts) < 3 {
			continue
		}
		access = append(access, tokenAccess{
			Type: parts[0], Name: strings.Join(parts[1:len(parts)-1], ":"),
			Actions: strings.Split(parts[len(parts)-1], ","),
		})
	}
	token, err := s.sign(access)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	//nolint:errchkjson // Only strings and a number are encoded; a client that left is not our concern.
	_ = json.NewEncoder(w).Encode(map[string]any{field: token, "expires_in": int(tokenLifetime.Seconds())})
}

// sign makes a JSON web token (RFC 7519) signed with ES256.
func (s *tokenServer) sign(access []tokenAccess) (string, error) {
	now := time.Now()
	header, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{s.chain}})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": tokenIssuer, "sub": s.opts.Username, "aud": tokenService, "jti": rand.Text(),
		"exp": now.Add(tokenLifetime).Unix(), "nbf": now.Add(-time.Minute).Unix(), "iat": now.Unix(),
		"access": access,
	})
	if err != nil {
		return "", err
	}
	enc := base64.RawURLEncoding
	payload := enc.EncodeToString(header) + "." + enc.EncodeToString(claims)
	hash := sha256.Sum256([]byte(payload))
	a, b, err := ecdsa.Sign(rand.Reader, s.key, hash[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 2*es256Half)
	a.FillBytes(signature[:es256Half])
	b.FillBytes(signature[es256Half:])
	return payload + "." + enc.EncodeToString(signature), nil
}
