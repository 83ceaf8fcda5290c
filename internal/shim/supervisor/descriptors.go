package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/shim/wire"
)

const (
	// lockRetry is how often a supervisor that finds another one looks again.
	lockRetry = 20 * time.Millisecond
	// acceptRetry is the pause after a connection that could not be accepted for want of descriptors.
	acceptRetry = 100 * time.Millisecond
)

// ErrServed tells that another supervisor serves the directory: there is nothing to do.
var ErrServed = errors.New("another supervisor serves this directory")

// takeServeLock makes sure that only one supervisor serves the directory. The one
// that holds the lock is about to end, which is waited for, or about to serve: then
// its client died after starting it, and the next client started this one.
func takeServeLock(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, wire.ServeLock)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		case answers(ctx, filepath.Join(dir, wire.Socket)):
			return nil, errors.Join(ErrServed, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, context.Cause(ctx)), f.Close())
		case <-time.After(lockRetry):
		}
	}
}

// answers reports whether a process accepts connections.
func answers(ctx context.Context, socket string) bool {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// listen opens the sockets, or takes those of a predecessor over.
func (s *Supervisor) listen(handed *handover) error {
	rpc, err := listenOn(filepath.Join(s.cfg.Dir, wire.Socket), "unix", handed.rpc)
	if err != nil {
		return err
	}
	if s.fds, err = listenOn(filepath.Join(s.cfg.Dir, wire.FDSocket), "unixpacket", handed.fds); err != nil {
		return errors.Join(err, rpc.Close())
	}
	s.clients = &countingListener{Listener: rpc, none: s.leaveIfIdle}
	return nil
}

func listenOn(path, network string, handed *os.File) (*net.UnixListener, error) {
	if handed != nil {
		defer func() { _ = handed.Close() }()
		l, err := net.FileListener(handed)
		if err != nil {
			return nil, fmt.Errorf("take socket %s over: %w", path, err)
		}
		unixListener, ok := l.(*net.UnixListener)
		if !ok {
			return nil, errors.Join(fmt.Errorf("take socket %s over: it is a %T: %w", path, l, errdefs.ErrInternal), l.Close())
		}
		unixListener.SetUnlinkOnClose(false)
		return unixListener, nil
	}
	// The serve lock is held, so no process listens on what is there.
	if err := remove(path); err != nil {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.SetUnlinkOnClose(false) // a successor may be listening there by then
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict socket: %w", err), l.Close())
	}
	return l, nil
}

// serveFDs answers on the descriptor socket.
func (s *Supervisor) serveFDs(ctx context.Context) {
	for {
		conn, err := s.fds.AcceptUnix()
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			s.log.Error("descriptor connection not accepted", "error", err)
			time.Sleep(acceptRetry)
			continue
		}
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				s.log.Error("serve descriptors", "error", err)
				s.stop()
			}
			return
		}
		s.wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			defer func() { _ = conn.Close() }()
			c := wire.NewFDConn(conn)
			for c.Answer(s.answer) == nil {
			}
		})
	}
}

// answer serves one request on the descriptor socket.
func (s *Supervisor) answer(op, name string, files wire.Files) (wire.Files, func(), error) {
	switch {
	case op == "put" && strings.HasPrefix(name, "stdio/"):
		return nil, nil, s.staging.put(name, s.podOf(name), files, nil)
	case op == "put":
		return nil, nil, s.takeBack(name, files)
	case op == "get":
		files.Close()
		reply, err := s.lookUp(name)
		return reply, reply.Close, err
	case op == "drop":
		files.Close()
		s.staging.take(name).Close()
		return nil, nil, nil
	default:
		files.Close()
		return nil, nil, fmt.Errorf("request %q: %w", op, errdefs.ErrInvalidArgument)
	}
}

// podOf returns the pod for whose exec descriptors are staged, "" for an older client, which does
// not name the container.
func (s *Supervisor) podOf(name string) string {
	_, rest, _ := strings.Cut(name, "/")
	id, _, _ := strings.Cut(rest, "/")
	c, err := s.find(id)
	if err != nil {
		return ""
	}
	return c.pod()
}

// lookUp returns duplicates of the descriptors known under name: none when it has
// gone meanwhile.
func (s *Supervisor) lookUp(name string) (wire.Files, error) {
	kind, rest, _ := strings.Cut(name, "/")
	if kind == "attach" {
		return s.staging.take(name), nil
	}
	id, execID, _ := strings.Cut(rest, "/")
	c, err := s.find(id)
	if err != nil {
		return nil, nil // see above
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	found := wire.Files{}
	switch {
	case kind == "exec":
		e := c.execs[execID]
		if e == nil {
			return nil, nil
		}
		e.collect()
		found[wire.Pidfd], found[wire.Console], found[wire.Stdin] = e.process.fd(), e.console, e.stdin
	case c.io == nil:
		found[wire.Pidfd] = c.init.fd()
	default:
		c.io.mu.Lock()
		defer c.io.mu.Unlock()
		found[wire.Pidfd], found[wire.Console] = c.init.fd(), c.io.console
		found[wire.Stdout], found[wire.Stderr] = c.io.stdout, c.io.stderr
		if c.rec.StdinOnce {
			found[wire.Stdin] = c.io.stdin
		}
	}
	return duplicates(found)
}

func duplicates(files wire.Files) (wire.Files, error) {
	reply := wire.Files{}
	for kind, f := range files {
		if f == nil {
			continue
		}
		dup, err := wire.Dup(f)
		if err != nil {
			reply.Close()
			return nil, err
		}
		reply[kind] = dup
	}
	return reply, nil
}
