package stream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"github.com/berth-runtime/berth/test/leakcheck"
)

// encrypted starts a server with TLS in whose files are in dir.
func encrypted(t *testing.T, p *program, o TLS) *Server {
	t.Helper()
	return serveWith(t, Options{Runtime: p, TLS: &o})
}

// filesIn names the files of a server.
func filesIn(dir string) TLS {
	return TLS{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), Generate: true}
}

// throughTLS runs a session over both protocols with what a client trusts and shows.
func throughTLS(t *testing.T, s *Server, trust rest.TLSClientConfig, o func() remotecommand.StreamOptions) (overSPDY, overWebSocket error) {
	t.Helper()
	errs := [2]error{}
	for i := range errs {
		text, err := s.Exec("c1", []string{"cat"}, Pipes{Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" {
			t.Fatalf("URL %q, %v: want https", text, err)
		}
		cfg := &rest.Config{TLSClientConfig: trust}
		client, err := remotecommand.NewSPDYExecutor(cfg, "POST", u)
		if i == 1 {
			client, err = remotecommand.NewWebSocketExecutor(cfg, "GET", text)
		}
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		errs[i] = client.StreamWithContext(ctx, o())
		cancel()
	}
	return errs[0], errs[1]
}

// echo is a process that repeats its input, and must see the end of it.
func echo() *program {
	return &program{exec: func(_ context.Context, _ []string, s Streams) (int, error) {
		_, err := io.Copy(s.Stdout, s.Stdin)
		return 0, err
	}}
}

// A client that trusts the generated certificate has a whole session, half-close included; one that does not has none.
func TestSessionsAreEncrypted(t *testing.T) {
	leakcheck.Check(t)
	files := filesIn(t.TempDir())
	s := encrypted(t, echo(), files)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	var out *buffer
	options := func() remotecommand.StreamOptions {
		out = &buffer{}
		return remotecommand.StreamOptions{Stdin: strings.NewReader(big), Stdout: out}
	}
	spdyErr, wsErr := throughTLS(t, s, rest.TLSClientConfig{CAFile: files.CertFile}, options)
	if spdyErr != nil || wsErr != nil || out.String() != big {
		t.Errorf("over SPDY: %v, over WebSocket: %v, with %d bytes of %d", spdyErr, wsErr, len(out.String()), len(big))
	}
	spdyErr, wsErr = throughTLS(t, s, rest.TLSClientConfig{}, options)
	if !unknownAuthority(spdyErr) || !unknownAuthority(wsErr) {
		t.Errorf("without trust, over SPDY: %v, over WebSocket: %v", spdyErr, wsErr)
	}
	info, err := os.Stat(files.KeyFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v; want it to be the owner's only", info.Mode(), err)
	}
}

func unknownAuthority(err error) bool {
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	return unknown || err != nil && strings.Contains(err.Error(), "unknown authority")
}

// A certificate that is replaced is used from the next connection on; files that cannot be read change nothing.
func TestCertificateIsReplaced(t *testing.T) {
	leakcheck.Check(t)
	given, other := filesIn(t.TempDir()), filesIn(t.TempDir())
	for _, f := range []TLS{given, other} {
		if _, err := openCertificates(f, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	}
	given.Generate = false
	s := encrypted(t, echo(), given)
	serial := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is only looked at
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(given.KeyFile, given.KeyFile+".old")
	if got := serial(); got != first {
		t.Errorf("without a key the certificate is %s, want %s still", got, first)
	}
	move(other.KeyFile, given.KeyFile)
	if got := serial(); got != first {
		t.Errorf("with another key the certificate is %s, want %s still", got, first)
	}
	move(other.CertFile, given.CertFile)
	if got := serial(); got == first {
		t.Error("the new certificate is not used")
	}
}

// A generated certificate is renewed before it expires, when its files are damaged, and when it does not name the
// address that is listened on; else it is kept.
func TestCertificateIsRenewed(t *testing.T) {
	files := filesIn(t.TempDir())
	loopback, elsewhere := &net.TCPAddr{IP: net.IPv6loopback}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}
	log := slog.New(slog.DiscardHandler)
	serialOf := func(c *certificates) string {
		t.Helper()
		config, err := c.configFor(nil)
		if err != nil {
			t.Fatal(err)
		}
		return config.Certificates[0].Leaf.SerialNumber.String()
	}
	open := func(address net.Addr) *certificates {
		t.Helper()
		c, err := openCertificates(files, address, log)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := open(loopback)
	first := serialOf(c)
	if got := serialOf(open(loopback)); got != first {
		t.Errorf("the next server has %s, want %s", got, first)
	}
	moved := open(elsewhere)
	if serialOf(moved) == first {
		t.Error("a certificate for another address is used")
	}
	c.now = func() time.Time { return time.Now().Add(certificateLife - renewalTime + time.Hour) }
	second := serialOf(moved)
	if got := serialOf(c); got == second || got == first {
		t.Error("a certificate that is about to expire is not renewed")
	}
	if err := os.WriteFile(files.CertFile, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serialOf(open(loopback)); got == second {
		t.Error("a damaged certificate is not replaced")
	}
	given := files
	given.Generate, given.CertFile = false, filepath.Join(t.TempDir(), "none")
	if _, err := openCertificates(given, loopback, log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a given certificate that is not there: %v", err)
	}
}

// With authorities for clients, one without a certificate has no session.
func TestClientsNeedCertificates(t *testing.T) {
	leakcheck.Check(t)
	files, client := filesIn(t.TempDir()), filesIn(t.TempDir())
	if _, err := openCertificates(client, &net.TCPAddr{IP: net.IPv6loopback}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	files.ClientCAFile = filepath.Join(filepath.Dir(client.CertFile), "ca.crt")
	text, err := os.ReadFile(client.CertFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files.ClientCAFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s := encrypted(t, echo(), files)
	options := func() remotecommand.StreamOptions {
		return remotecommand.StreamOptions{Stdin: strings.NewReader("x"), Stdout: io.Discard}
	}
	spdyErr, wsErr := throughTLS(t, s, rest.TLSClientConfig{CAFile: files.CertFile}, options)
	if spdyErr == nil || wsErr == nil {
		t.Errorf("without a certificate, over SPDY: %v, over WebSocket: %v; want errors", spdyErr, wsErr)
	}
	// The self-signed certificate of a server is no client's: its use is another.
	own := rest.TLSClientConfig{CAFile: files.CertFile, CertFile: client.CertFile, KeyFile: client.KeyFile}
	if spdyErr, wsErr = throughTLS(t, s, own, options); spdyErr == nil || wsErr == nil {
		t.Errorf("with a server's certificate, over SPDY: %v, over WebSocket: %v; want errors", spdyErr, wsErr)
	}
}

// Ports are forwarded through TLS too.
func TestPortForwardIsEncrypted(t *testing.T) {
	leakcheck.Check(t)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "from the pod")
			_ = conn.Close()
		}
	}()
	files := filesIn(t.TempDir())
	s := encrypted(t, &program{netns: func(string) (string, error) { return "", nil }}, files)
	port := int32(listener.Addr().(*net.TCPAddr).Port) //nolint:gosec // a port fits
	address, err := s.PortForward("p1", []int32{port})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{CAFile: files.CertFile}})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	f, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u),
		[]string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- f.ForwardPorts() }()
	await(t, ready, "the start of the port-forward")
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, fmt.Sprintf("127.0.0.1:%d", ports[0].Local), ""); got != "from the pod" {
		t.Errorf("the port says %q", got)
	}
	close(stop)
	if err := await(t, ended, "the end of the port-forward"); err != nil {
		t.Error(err)
	}
}

// A session on which nothing moves ends after its time, with a reason, whatever the protocol.
func TestIdleSessionsEnd(t *testing.T) {
	leakcheck.Check(t)
	ended := make(chan error, 2)
	s := serveWith(t, Options{IdleTimeout: time.Second, Runtime: &program{exec: func(ctx context.Context, _ []string, _ Streams) (int, error) {
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return 0, ctx.Err()
	}}})
	in, typing := io.Pipe()
	defer func() { _ = typing.Close() }()
	for name, run := range map[string]func(context.Context, *testing.T, string, remotecommand.StreamOptions) error{
		"SPDY": run, "WebSocket": runWebSocket,
	} {
		u, err := s.Exec("c1", []string{"idle"}, Pipes{Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		err = run(t.Context(), t, u, remotecommand.StreamOptions{Stdin: in, Stdout: io.Discard})
		if err == nil || !strings.Contains(err.Error(), errIdle.Error()) {
			t.Errorf("%s: the session ends with %v, want %v", name, err, errIdle)
		}
		if cause := await(t, ended, "the end of the command"); !errors.Is(cause, errIdle) {
			t.Errorf("%s: the command ends for %v", name, cause)
		}
	}
}
