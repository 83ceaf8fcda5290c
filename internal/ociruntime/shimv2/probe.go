package shimv2

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/shimv2/task"
)

const (
	// probeTimeout bounds a probe whose context has no deadline.
	probeTimeout = 30 * time.Second
	// cleanupTimeout bounds the removal of what a probe started.
	cleanupTimeout = 10 * time.Second
)

// Probe runs a throw-away container with a shim. The error says why that does not work on this host. Nothing of the
// container or the shim is left in either case.
func Probe(ctx context.Context, h ociruntime.Handler) (features ociruntime.Features, err error) {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, probeTimeout)
		defer cancel()
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("probe runtime handler %q: %w", h.Name, err)
		}
	}()
	scratch, err := os.MkdirTemp("", "berth-probe-")
	if err != nil {
		return features, err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	h.Root = filepath.Join(scratch, "root")
	self, err := os.Executable()
	if err != nil {
		return features, err
	}
	p, err := New(h, ociruntime.Local{}, filepath.Join(scratch, "events"), self)
	if err != nil {
		return features, err
	}
	if features, err = p.features(ctx); err != nil {
		return features, err
	}
	// A shim expects a bundle to be named like its container.
	id := "berth-probe-" + strings.ToLower(rand.Text())
	t := &trial{p: p, scratch: scratch, bundle: filepath.Join(scratch, id), id: id}
	return features, t.run(ctx)
}

// features are those of the OCI runtime behind the shim, where that is told.
func (p *Program) features(ctx context.Context) (ociruntime.Features, error) {
	if !p.drivesRunc() {
		return ociruntime.Features{Version: filepath.Base(p.path)}, nil
	}
	binary := p.handler.Options[OptionBinaryName]
	if binary == "" {
		binary = "runc"
	}
	h := p.handler
	h.Type, h.Path, h.Options = ociruntime.TypeOCI, binary, nil
	features, err := ociruntime.Inspect(ctx, h)
	features.Version = strings.TrimSpace(filepath.Base(p.path) + " with " + filepath.Base(binary) + " " + features.Version)
	return features, err
}

// trial is one container of a probe.
type trial struct {
	p                   *Program
	scratch, bundle, id string
	endpoint            Endpoint
	pid                 int
}

func (t *trial) run(ctx context.Context) (err error) {
	if err := ociruntime.WriteTrial(t.bundle, t.spec()); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	log, err := drainLog(t.bundle)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	events, err := serveEvents(ctx, filepath.Join(t.scratch, "events"))
	if err != nil {
		return err
	}
	defer func() { _ = events.Close() }()
	defer func() { err = errors.Join(err, t.end(ctx)) }()
	if t.endpoint, err = t.p.Start(ctx, t.scratch, t.bundle, t.id); err != nil {
		return err
	}
	conn, err := Dial(ctx, t.endpoint)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	err = t.runTask(ctx, conn)
	return errors.Join(err, conn.Shutdown(ctx, t.id))
}

func (t *trial) spec() *specs.Spec {
	cgroup := "/" + t.id
	if t.p.handler.SystemdCgroup {
		cgroup = "system.slice:berth:" + t.id
	}
	s := &specs.Spec{
		Version: "1.0.0",
		Process: &specs.Process{Args: []string{"/exit"}, Cwd: "/", NoNewPrivileges: true},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}},
		Linux:   &specs.Linux{CgroupsPath: cgroup},
	}
	for _, kind := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace,
	} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind})
	}
	return s
}

func (t *trial) runTask(ctx context.Context, conn *Conn) error {
	options, err := t.p.Options()
	if err != nil {
		return err
	}
	if _, err := conn.Create(ctx, &task.CreateRequest{Id: t.id, Bundle: t.bundle, Options: options}); err != nil {
		return err
	}
	if t.pid, err = conn.PID(ctx, t.id); err != nil {
		return err
	}
	if _, err := conn.Start(ctx, t.id, ""); err != nil {
		return err
	}
	code, _, err := conn.Wait(ctx, t.id, "")
	if err == nil && code != 0 {
		err = fmt.Errorf("a container ended with code %d, want 0: %w", code, errdefs.ErrFailedPrecondition)
	}
	return errors.Join(err, conn.Delete(ctx, t.id, ""))
}

// end waits for the shim's end, and enforces it.
func (t *trial) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	var errs []error
	if t.pid > 1 && !t.ended(cleanupTimeout/4) {
		errs = append(errs, t.p.Delete(ctx, t.scratch, t.bundle, t.id))
		if err := unix.Kill(t.pid, syscall.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill shim: %w", err))
		}
	}
	if t.endpoint.Address != "" {
		errs = append(errs, RemoveSocket(t.endpoint))
	}
	return errors.Join(errs...)
}

// ended waits until the shim has gone.
func (t *trial) ended(patience time.Duration) bool {
	fd, err := unix.PidfdOpen(t.pid, 0)
	if err != nil {
		return true // there is no such process any more
	}
	defer func() { _ = unix.Close(fd) }()
	for end := time.Now().Add(patience); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds()))
		if errors.Is(err, unix.EINTR) && time.Now().Before(end) {
			continue
		}
		return n > 0
	}
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
