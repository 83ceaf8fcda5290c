package stream

import (
	"bytes"
	"context"
	"log/slog"
	"net/url"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

// testTimeout bounds every wait of these tests.
const testTimeout = 20 * time.Second

// program is a [Runtime] whose processes are functions of the test.
type program struct {
	exec   func(ctx context.Context, cmd []string, s Streams) (int, error)
	attach func(ctx context.Context, s Streams) error
	netns  func(sandboxID string) (string, error)
}

func (p *program) Exec(ctx context.Context, _ string, cmd []string, s Streams) (int, error) {
	return p.exec(ctx, cmd, s)
}

func (p *program) Attach(ctx context.Context, _ string, s Streams) error { return p.attach(ctx, s) }

func (p *program) NetNS(sandboxID string) (string, error) { return p.netns(sandboxID) }

// countingMeter is a [Meter] that knows how many sessions are open.
type countingMeter struct {
	mu   sync.Mutex
	open map[string]int
}

func (m *countingMeter) Session(kind string) func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open[kind]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.open[kind]--
	}
}

// serve starts a server for p that is shut down with the test.
func serve(t *testing.T, p *program) *Server {
	t.Helper()
	return serveWith(t, Options{Runtime: p})
}

// serveWith starts a server as serve does, with options.
func serveWith(t *testing.T, o Options) *Server {
	t.Helper()
	meter := &countingMeter{open: map[string]int{}}
	o.Address, o.Meter, o.Log = "127.0.0.1", meter, slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := Listen(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), testTimeout)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		meter.mu.Lock()
		defer meter.mu.Unlock()
		for kind, open := range meter.open {
			if open != 0 {
				t.Errorf("%d sessions of %s are counted as open after shutdown", open, kind)
			}
		}
	})
	return s
}

// buffer is a [bytes.Buffer] for several goroutines.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// run is what crictl does with the URL of an exec or attach session.
func run(ctx context.Context, t *testing.T, sessionURL string, o remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(sessionURL)
	if err != nil {
		t.Fatal(err)
	}
	client, err := remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	return client.StreamWithContext(ctx, o)
}

// await returns when c is closed or delivers, or fails the test.
func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(testTimeout):
		t.Fatalf("%s did not happen within %v", what, testTimeout)
		panic("unreachable")
	}
}
