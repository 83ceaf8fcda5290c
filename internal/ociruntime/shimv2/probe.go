package shimv2

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/probecontainer"
	"github.com/berth-runtime/berth/internal/ociruntime/shimv2/task"
)

const (
	// probeTimeout bounds a probe whose context has no deadline.
	probeTimeout = 30 * time.Second
	// sockets is where containerd's own shims listen.
	sockets = "/run/containerd/s"
	// shimUnsure is the exit code that gVisor's shim tells when it does not know.
	shimUnsure = 128
)

// Probe runs a probe container with a shim in a directory. The error says why that does not work on
// this host. Nothing of the container or the shim is left in either case.
func Probe(ctx context.Context, h ociruntime.Handler, dir string) (features ociruntime.Features, err error) {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, probeTimeout)
		defer cancel()
	}
	defer func() {
		if err != nil {
			err = &ociruntime.ProbeError{Handler: h.Name, Err: err}
		}
	}()
	t, err := probecontainer.New(dir)
	if err != nil {
		return features, err
	}
	defer func() { err = errors.Join(err, t.Close(ctx)) }()
	h.Root = t.Root()
	self, err := os.Executable()
	if err != nil {
		return features, err
	}
	p, err := New(h, ociruntime.Local{}, filepath.Join(t.Dir, "events"), self)
	if err != nil {
		return features, err
	}
	if features, err = p.features(ctx, t.Dir); err != nil {
		return features, err
	}
	return features, p.tryRun(ctx, t)
}

// features are those of the OCI runtime behind the shim, where it is known. Of gVisor only the version counts.
func (p *Program) features(ctx context.Context, scratch string) (ociruntime.Features, error) {
	features := ociruntime.Features{Sandboxing: p.sandboxes()}
	binary := cmp.Or(p.handler.Options[OptionBinaryName], p.drives())
	if binary == "" {
		features.Version = filepath.Base(p.path)
		return features, nil
	}
	h := p.handler
	h.Type, h.Path, h.Options = ociruntime.TypeOCI, binary, nil
	behind, err := ociruntime.Inspect(ctx, h, scratch)
	version := behind.Version
	switch {
	case p.drivesRunc():
		behind.Checkpoint = false // CRIU is driven through commands alone
		features = behind
	case err != nil: // the shim may have a configuration with another path
		version, err = "of unknown version", nil
	}
	features.Program = behind.Program
	features.Version = strings.TrimSpace(filepath.Base(p.path) + " with " + filepath.Base(binary) + " " + version)
	return features, err
}

// drives names the program that a shim calls, "" if it is not known or there is none.
func (p *Program) drives() string {
	switch name := filepath.Base(p.path); {
	case p.drivesRunc():
		return "runc"
	case strings.HasPrefix(name, "containerd-shim-runsc-"):
		return "runsc"
	default:
		return ""
	}
}

// tryRun runs a probe container, which must end with 0.
func (p *Program) tryRun(ctx context.Context, t *probecontainer.Container) error {
	spec := t.Spec("", p.handler.SystemdCgroup)
	if p.sandboxes() { // gVisor's shim makes no sandbox for a container that does not say this
		spec.Annotations = map[string]string{
			ociruntime.AnnotationContainerType: ociruntime.ContainerTypeSandbox, ociruntime.AnnotationSandboxID: t.ID,
		}
	}
	if err := t.Write(spec); err != nil {
		return err
	}
	log, err := drainLog(t.Bundle())
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	events, err := serveEvents(ctx, p.events)
	if err != nil {
		return err
	}
	defer func() { _ = events.Close() }()
	// Who is killed before the answer of Start cannot note the address that is in it.
	if err := t.Leaves(p.expectedSocket(t.ID)); err != nil {
		return err
	}
	endpoint, err := p.Start(ctx, t.Dir, t.Bundle(), t.ID)
	if err != nil {
		return err
	}
	if err := t.Leaves(endpoint.Socket()); err != nil {
		return err
	}
	conn, err := Dial(ctx, endpoint)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	err = p.runTask(ctx, conn, t)
	return errors.Join(err, conn.Shutdown(ctx, t.ID))
}

// expectedSocket is where containerd's own shims will serve: the name is a hash of the address of the events, the
// namespace and the ID.
func (p *Program) expectedSocket(id string) string {
	return filepath.Join(sockets, fmt.Sprintf("%x", sha256.Sum256([]byte(filepath.Join(p.events, Namespace, id)))))
}

// runTask has the shim run the container.
func (p *Program) runTask(ctx context.Context, conn *Conn, t *probecontainer.Container) error {
	options, err := p.Options()
	if err != nil {
		return err
	}
	if _, err := conn.Create(ctx, &task.CreateRequest{Id: t.ID, Bundle: t.Bundle(), Options: options}); err != nil {
		return err
	}
	if _, err := conn.Start(ctx, t.ID, ""); err != nil {
		return err
	}
	code, _, err := conn.Wait(ctx, t.ID, "")
	// The sandbox has ended with its first container. gVisor's shim may come too late to ask it for the code, and says so.
	if err == nil && code != 0 && (code != shimUnsure || !p.sandboxes()) {
		err = fmt.Errorf("a container ended with code %d, want 0: %w", code, errdefs.ErrFailedPrecondition)
	}
	return errors.Join(err, conn.Delete(ctx, t.ID, ""))
}

// drainLog makes the log of a bundle and reads it until it is closed.
func drainLog(bundle string) (io.Closer, error) {
	path := filepath.Join(bundle, LogFIFO)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("make log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, f) // it ends when it is closed
	}()
	return closer(func() error {
		err := f.Close()
		<-drained
		return err
	}), nil
}

// serveEvents serves a socket for events until it is closed.
func serveEvents(ctx context.Context, path string) (io.Closer, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for events: %w", err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve events: %w", err), l.Close())
	}
	DropEvents(server)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ctx, l) // it ends when it is closed
	}()
	return closer(func() error {
		err := server.Close()
		<-served
		return err
	}), nil
}

type closer func() error

// Close calls the function.
func (c closer) Close() error { return c() }
