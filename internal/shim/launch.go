package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/shim/wire"
)

const (
	// maxStartReport bounds what a starting supervisor says about why it cannot serve.
	maxStartReport = 4096
)

// errLeft tells that the supervisor that served has ended before it was connected to.
var errLeft = errors.New("the supervisor has ended again")

// errDied tells that a supervisor that was started has ended without a word.
var errDied = fmt.Errorf("it ended before it served, see shim.log: %w", errdefs.ErrUnavailable)

// rpcConn is a ttrpc connection which says when it ended.
type rpcConn struct {
	client *ttrpc.Client
	gone   chan struct{}
}

func (r *rpcConn) close() error { return r.client.Close() }

// launch connects to the supervisor in dir and starts one when none answers. The
// launch lock keeps two daemons, or two attempts, from starting one each.
func launch(ctx context.Context, opts Options, dir string) (*rpcConn, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create supervisor directory: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(dir, wire.LaunchLock))
	if err != nil {
		return nil, err
	}
	defer unlock()
	conn, err := dial(ctx, dir)
	if err == nil {
		return conn, nil
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("connect to supervisor socket: %w", err)
	}
	if err := spawn(ctx, opts, dir); err != nil {
		return nil, fmt.Errorf("start %s: %w", opts.Binary, err)
	}
	conn, err = dial(ctx, dir)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		// What was started found another one, which had no client and no container.
		return nil, fmt.Errorf("%w: %w", errLeft, err)
	}
	return conn, err
}

func dial(ctx context.Context, dir string) (*rpcConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(dir, wire.Socket))
	if err != nil {
		return nil, err
	}
	r := &rpcConn{gone: make(chan struct{})}
	r.client = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(r.gone) }))
	return r, nil
}

// lock takes the lock file at path, waiting for its holder as long as ctx allows.
// The wait is a blocking flock in a goroutine of its own, since flock knows no
// deadline; it ends when the lock is granted and is then released at once.
func lock(ctx context.Context, path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open launch lock: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if !errors.Is(err, syscall.EINTR) {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("take launch lock: %w", err)
		}
		return func() { _ = f.Close() }, nil
	case <-ctx.Done():
		go func() {
			<-done //nolint:errcheck // granted or refused, closing ends it
			_ = f.Close()
		}()
		return nil, fmt.Errorf("take launch lock %s: %w", path, ctx.Err())
	}
}

// spawn starts the program in a session of its own and waits until it serves. It
// reports over a pipe: "ok", or why it cannot.
func spawn(ctx context.Context, opts Options, dir string) error {
	report, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make report pipe: %w", err)
	}
	defer func() { _ = report.Close() }()
	logFile, err := openLog(filepath.Join(dir, wire.LogFile))
	if err != nil {
		_ = theirs.Close()
		return err
	}
	defer func() { _ = logFile.Close() }()
	args := []string{"--state", opts.State, "--report-fd", "3"}
	if opts.Instance != "" {
		args = append(args, "--instance", opts.Instance)
	}
	if opts.OpenFiles > 0 {
		args = append(args, "--nofile", strconv.FormatUint(opts.OpenFiles, 10))
	}
	// What this process inherited without close-on-exec is not for a supervisor to hold.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		_ = theirs.Close()
		return fmt.Errorf("keep inherited descriptors from it: %w", err)
	}
	cmd := exec.Command(opts.Binary, args...) //nolint:noctx // it outlives every context of this process
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return err
	}
	// The supervisor is this process's child for as long as this process lives;
	// the goroutine ends, and reaps it, when it ends.
	go func() { _ = cmd.Wait() }()
	return await(ctx, report)
}

// await reads a starting supervisor's report.
func await(ctx context.Context, report *os.File) error {
	deadline, bounded := ctx.Deadline()
	if !bounded {
		deadline = time.Now().Add(connectTimeout)
	}
	if err := report.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("bound the wait for its report: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(report, maxStartReport))
	switch said := strings.TrimSpace(string(text)); {
	case said == "ok":
		return nil
	case said != "":
		return fmt.Errorf("%s: %w", said, errdefs.ErrUnavailable)
	case err != nil:
		return fmt.Errorf("wait for it to serve: %w", err)
	default:
		return errDied
	}
}

// openLog opens the supervisor's own log for what it writes before it opens the log itself.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open supervisor log: %w", err)
	}
	return f, nil
}
