// Package registry runs a real docker-registry on a free loopback port, with
// every kind of authentication that a node meets, and a proxy in front of it
// that misbehaves on request. Tests and the demo pull from it.
package registry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

const (
	// Program is the registry's executable (Debian package docker-registry).
	Program = "docker-registry"

	startDeadline = 30 * time.Second
	stopDeadline  = 10 * time.Second
	logTailLines  = 50
)

// Options choose how a registry authenticates its clients. The zero value is
// an open registry.
type Options struct {
	// Username and Password are the only account. With both empty access is
	// anonymous.
	Username, Password string
	// Bearer hands out tokens from an own token endpoint instead of checking
	// the account on each request (HTTP basic).
	Bearer bool
	// IdentityToken is accepted by the token endpoint in place of the account.
	IdentityToken string
	// Dir keeps the registry's blobs. Empty: a temporary directory that Stop
	// removes.
	Dir string
}

// Registry is a running docker-registry.
type Registry struct {
	// Host is the "127.0.0.1:port" under which it answers plain HTTP.
	Host string
	// TokenHost is the "127.0.0.1:port" of the token endpoint, with Options.Bearer.
	TokenHost string
	// Username and Password are the account of Options.
	Username, Password string

	cmd    *exec.Cmd
	tokens *tokenServer
	dir    string
	ownDir bool
	waited chan error
	log    *logTail
}

// Run starts a registry for the length of a test and fails the test if it does
// not start or does not stop.
func Run(t testing.TB, opts Options) *Registry {
	t.Helper()
	r, err := Start(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("registry %s, last lines:\n%s", r.Host, r.log)
		}
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Start starts a registry and returns once it accepts connections. The caller
// stops it with Stop.
func Start(ctx context.Context, opts Options) (_ *Registry, err error) {
	program, err := exec.LookPath(Program)
	if err != nil {
		return nil, fmt.Errorf("find %s (Debian package docker-registry): %w", Program, err)
	}
	r := &Registry{Username: opts.Username, Password: opts.Password, dir: opts.Dir, log: &logTail{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Stop())
		}
	}()
	if r.dir == "" {
		r.ownDir = true
		if r.dir, err = os.MkdirTemp("", "berth-registry-"); err != nil {
			return nil, fmt.Errorf("make registry directory: %w", err)
		}
	}
	if opts.Bearer {
		if r.tokens, err = startTokenServer(ctx, opts); err != nil {
			return nil, err
		}
		r.TokenHost = strings.TrimSuffix(strings.TrimPrefix(r.tokens.realm, "http://"), "/token")
	}
	config, err := r.writeConfig(opts)
	if err != nil {
		return nil, err
	}
	if err := r.spawn(ctx, program, config); err != nil {
		return nil, err
	}
	return r, nil
}

// Stop ends the registry and removes what it wrote. It may be called again.
func (r *Registry) Stop() error {
	var errs []error
	if r.cmd != nil {
		errs = append(errs, r.end())
		r.cmd = nil
	}
	if r.tokens != nil {
		errs = append(errs, r.tokens.stop())
		r.tokens = nil
	}
	if r.ownDir && r.dir != "" {
		errs = append(errs, os.RemoveAll(r.dir))
		r.dir = ""
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop registry %s: %w", r.Host, err)
	}
	return nil
}

func (r *Registry) end() error {
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(stopDeadline)
	defer timer.Stop()
	select {
	case err := <-r.waited:
		return unlessExit(err)
	case <-timer.C:
		return errors.Join(fmt.Errorf("process %d ignored SIGTERM for %s", r.cmd.Process.Pid, stopDeadline),
			r.cmd.Process.Kill(), unlessExit(<-r.waited))
	}
}

// unlessExit drops an exit status: a process that was terminated has none that
// says anything.
func unlessExit(err error) error {
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil
	}
	return err
}

// writeConfig writes the registry's configuration and returns its path.
func (r *Registry) writeConfig(opts Options) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, `version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
http: {addr: "127.0.0.1:0", secret: berth}
`, filepath.Join(r.dir, "data"))
	switch {
	case opts.Bearer:
		bundle := filepath.Join(r.dir, "token.pem")
		if err := os.WriteFile(bundle, r.tokens.certificate, 0o600); err != nil {
			return "", fmt.Errorf("write token certificate: %w", err)
		}
		fmt.Fprintf(&b, "auth: {token: {realm: %q, service: %q, issuer: %q, rootcertbundle: %q}}\n",
			r.tokens.realm, tokenService, tokenIssuer, bundle)
	case opts.Username != "":
		hash, err := bcrypt.GenerateFromPassword([]byte(opts.Password), bcrypt.MinCost)
		if err != nil {
			return "", fmt.Errorf("hash registry password: %w", err)
		}
		file := filepath.Join(r.dir, "htpasswd")
		if err := os.WriteFile(file, fmt.Appendf(nil, "%s:%s\n", opts.Username, hash), 0o600); err != nil {
			return "", fmt.Errorf("write registry accounts: %w", err)
		}
		fmt.Fprintf(&b, "auth: {htpasswd: {realm: berth, path: %q}}\n", file)
	}
	path := filepath.Join(r.dir, "config.yml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return "", fmt.Errorf("write registry configuration: %w", err)
	}
	return path, nil
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// spawn starts the process and waits until it names its port: it binds port 0
// itself, so that no two registries can be given the same one.
func (r *Registry) spawn(ctx context.Context, program, config string) error {
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make registry log pipe: %w", err)
	}
	// It lives until Stop, not as long as the start's context.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, "serve", config)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "OTEL_TRACES_EXPORTER=none"}
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", program, err), write.Close(), read.Close())
	}
	r.cmd, r.waited = cmd, make(chan error, 1)
	closeErr := write.Close()
	address := make(chan string, 1)
	go func() {
		r.log.follow(read, address)
		if err := read.Close(); err != nil {
			r.waited <- errors.Join(err, cmd.Wait())
			return
		}
		r.waited <- cmd.Wait()
	}()
	if closeErr != nil {
		return closeErr
	}
	timer := time.NewTimer(startDeadline)
	defer timer.Stop()
	select {
	case host, ok := <-address:
		if !ok {
			return fmt.Errorf("start %s: it ended at once:\n%s", program, r.log)
		}
		r.Host = host
		return nil
	case <-timer.C:
		return fmt.Errorf("start %s: it does not listen after %s:\n%s", program, startDeadline, r.log)
	}
}

// logTail keeps the last lines that the registry printed.
type logTail struct {
	mu    sync.Mutex
	lines []string
}

// follow reads until the registry closes its output, sends the address that it
// announces, and closes the channel at the end.
func (l *logTail) follow(from io.Reader, address chan<- string) {
	defer close(address)
	announced := false
	scanner := bufio.NewScanner(from)
	for scanner.Scan() {
		line := scanner.Text()
		if m := listening.FindStringSubmatch(line); m != nil && !announced {
			announced = true
			address <- m[1]
		}
		if strings.Contains(line, "level=info") || strings.Contains(line, "http.request.method=HEAD") {
			continue // all is well, or it was only asked whether something is there
		}
		l.mu.Lock()
		l.lines = append(l.lines, line)
		if len(l.lines) > logTailLines {
			l.lines = l.lines[1:]
		}
		l.mu.Unlock()
	}
}

// String returns the lines.
func (l *logTail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}
