package registry

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fault is one way in which the proxy misbehaves. A request that no fault
// matches is passed on unchanged.
type Fault struct {
	// Method and Path select requests: the exact method and a part of the URL
	// path. Empty matches all.
	Method, Path string
	// Unless spares requests with this Authorization header.
	Unless string
	// Skip lets this many matching requests pass first; Times is how many are
	// struck after that (0: all).
	Skip, Times int

	// Status answers in the registry's place, with Header and a text body.
	Status int
	Header http.Header
	// Delay is waited before anything is answered.
	Delay time.Duration
	// Answer replaces the registry's response.
	Answer http.HandlerFunc
	// Change changes what the registry answered, before Rewrite.
	Change func(*http.Response)
	// Rewrite changes the body (Corrupt, Pad, Shorten or any other); the
	// Content-Length follows the new body.
	Rewrite func([]byte) []byte
	// Cut breaks the connection after this many bytes of the body, Stall stops
	// sending after as many until the client goes away. 0: off. To strike before
	// the first byte of the body use -1.
	Cut, Stall int64
	// Rate limits the body to this many bytes per second (0: no limit).
	Rate int64
}

// Corrupt flips one bit in the middle of a body and keeps its length.
func Corrupt(body []byte) []byte {
	out := append([]byte(nil), body...)
	if len(out) > 0 {
		out[len(out)/2] ^= 0x10
	}
	return out
}

// Pad appends bytes that the descriptor does not count.
func Pad(body []byte) []byte { return append(append([]byte(nil), body...), "surplus"...) }

// Shorten drops the second half of a body and says so in its length.
func Shorten(body []byte) []byte { return body[:len(body)/2] }

// Proxy stands in front of a registry and injects faults.
type Proxy struct {
	// Host is the "127.0.0.1:port" under which it answers plain HTTP.
	Host string

	upstream  string
	transport *http.Transport
	server    *http.Server
	done      chan error

	mu       sync.Mutex
	faults   []*Fault
	requests []string
	headers  []http.Header
}

// Redirect sends clients on to an address, with the path of the request behind it.
func Redirect(status int, address string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", address+r.URL.Path)
		w.WriteHeader(status)
	}
}

// RunProxy puts a proxy in front of a registry ("host:port") for the length of
// a test.
func RunProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	p, err := StartProxy(context.Background(), upstream)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// RunTLSProxy is RunProxy over HTTPS. The certificate of its authority is in the file.
func RunTLSProxy(t testing.TB, upstream string) (p *Proxy, authority string) {
	t.Helper()
	model := httptest.NewTLSServer(http.NotFoundHandler())
	defer model.Close()
	authority = filepath.Join(t.TempDir(), "ca.crt")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: model.Certificate().Raw})
	if err := os.WriteFile(authority, block, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := startProxy(context.Background(), upstream, func(l net.Listener) net.Listener {
		return tls.NewListener(l, &tls.Config{Certificates: model.TLS.Certificates, MinVersion: tls.VersionTLS12})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p, authority
}

// StartProxy puts a proxy in front of a registry. The caller stops it.
func StartProxy(ctx context.Context, upstream string) (*Proxy, error) {
	return startProxy(ctx, upstream, func(l net.Listener) net.Listener { return l })
}

func startProxy(ctx context.Context, upstream string, wrap func(net.Listener) net.Listener) (*Proxy, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for registry proxy: %w", err)
	}
	p := &Proxy{
		Host: l.Addr().String(), upstream: upstream, done: make(chan error, 1),
		transport: &http.Transport{DisableCompression: true},
	}
	p.server = &http.Server{Handler: http.HandlerFunc(p.serve), ReadHeaderTimeout: startDeadline}
	go func() { p.done <- p.server.Serve(wrap(l)) }()
	return p, nil
}

// Stop closes every connection and ends the proxy.
func (p *Proxy) Stop() error {
	err := p.server.Close()
	if served := <-p.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	p.transport.CloseIdleConnections()
	return err
}

// Inject replaces the faults that are in force. Without arguments the proxy
// behaves again.
func (p *Proxy) Inject(faults ...Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = nil
	for _, f := range faults {
		p.faults = append(p.faults, &f)
	}
}

// Requests returns "METHOD path" of every request so far, in order of arrival.
func (p *Proxy) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.requests...)
}

// Received returns the values of a header in all requests so far that have it.
func (p *Proxy) Received(header string) (values []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.headers {
		values = append(values, h.Values(header)...)
	}
	return values
}

// Count returns how many requests so far had the method and the part of the
// path.
func (p *Proxy) Count(method, path string) int {
	n := 0
	for _, r := range p.Requests() {
		if m, rest, _ := strings.Cut(r, " "); m == method && strings.Contains(rest, path) {
			n++
		}
	}
	return n
}

// strike notes a request and returns the fault that it meets.
func (p *Proxy) strike(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(p.requests, r.Method+" "+r.URL.Path)
	p.headers = append(p.headers, r.Header.Clone())
	for i, f := range p.faults {
		if f.Method != "" && f.Method != r.Method || !strings.Contains(r.URL.Path, f.Path) {
			continue
		}
		if f.Unless != "" && r.Header.Get("Authorization") == f.Unless {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		struck := *f
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				p.faults = append(p.faults[:i:i], p.faults[i+1:]...)
			}
		}
		return struck
	}
	return Fault{}
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	fault := p.strike(r)
	if !pause(r.Context(), fault.Delay) {
		return
	}
	if fault.Answer != nil {
		fault.Answer(w, r)
		return
	}
	if fault.Status != 0 {
		maps.Copy(w.Header(), fault.Header)
		http.Error(w, "injected by the test", fault.Status)
		return
	}
	fault.pass(p, w, r)
}

// pass passes a request on and the answer back as the fault changes it.
func (f *Fault) pass(p *Proxy, w http.ResponseWriter, r *http.Request) {
	answer, err := p.forward(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	if f.Change != nil {
		f.Change(answer)
	}
	maps.Copy(w.Header(), answer.Header)
	body := io.Reader(answer.Body)
	if f.Rewrite != nil && r.Method != http.MethodHead {
		whole, err := io.ReadAll(answer.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		whole = f.Rewrite(whole)
		w.Header().Set("Content-Length", strconv.Itoa(len(whole)))
		body = strings.NewReader(string(whole))
	}
	w.WriteHeader(answer.StatusCode)
	f.send(r.Context(), w, body)
}

// Forward passes a request on and its answer back. It is for the Answer of a fault.
func (p *Proxy) Forward(w http.ResponseWriter, r *http.Request) {
	var none Fault
	none.pass(p, w, r)
}

func (p *Proxy) forward(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host = "http", p.upstream
	// r.Host stays: the registry builds the upload locations from it.
	return p.transport.RoundTrip(out)
}

// send copies the body at the fault's pace and stops where it says.
func (f *Fault) send(ctx context.Context, w http.ResponseWriter, body io.Reader) {
	const chunk = 32 << 10
	limit := int64(-1)
	if f.Cut != 0 {
		limit = max(f.Cut, 0)
	} else if f.Stall != 0 {
		limit = max(f.Stall, 0)
	}
	flush := http.NewResponseController(w)
	for sent := int64(0); limit < 0 || sent < limit; {
		size := int64(chunk)
		if limit >= 0 {
			size = min(size, limit-sent)
		}
		if f.Rate > 0 {
			size = min(size, max(f.Rate/20, 1))
		}
		n, err := io.CopyN(w, body, size)
		sent += n
		if err != nil {
			return // the end of the body, or the client has left
		}
		if flush.Flush() != nil {
			return
		}
		if f.Rate > 0 && !pause(ctx, time.Duration(n)*time.Second/time.Duration(f.Rate)) {
			return
		}
	}
	if flush.Flush() != nil {
		return
	}
	if f.Cut == 0 {
		<-ctx.Done()
	}
	// Ends the connection without the bytes that the header promised.
	panic(http.ErrAbortHandler)
}

// pause waits, unless the client leaves first; it says whether it stayed.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
