package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// start runs a container, or joins or repeats the answer of an earlier start.
func (s *Supervisor) start(ctx context.Context, rec record) (record, error) {
	if err := checkStart(&rec); err != nil {
		return record{}, err
	}
	for {
		c, mine := s.claimID(rec)
		if !mine {
			if err := c.acquire(ctx); err != nil {
				return record{}, err
			}
			got, err, gone := c.record(), error(nil), c.isGone()
			if !gone && c.startFailed() { // and its undoing, too: try that again
				err, gone = c.delete(ctx), true
			}
			c.release()
			if err != nil {
				return record{}, err
			}
			if gone {
				continue // the start that was joined failed, or it was deleted meanwhile
			}
			return got, nil
		}
		// From here on the outcome does not depend on the caller's deadline.
		err := c.start(context.WithoutCancel(ctx))
		c.release()
		if err != nil {
			return record{}, err
		}
		return c.record(), nil
	}
}

// claimID returns the container of that ID, or makes it; then its token is the caller's.
func (s *Supervisor) claimID(rec record) (c *container, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c = s.containers[rec.ID]; c != nil {
		return c, false
	}
	c = s.newContainer(rec)
	s.containers[rec.ID] = c
	return c, true
}

func (c *container) isGone() bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.containers[c.id] != c
}

func checkStart(rec *record) error {
	if err := checkID("container ID", rec.ID); err != nil {
		return err
	}
	for _, field := range []struct {
		name, value string
		needed      bool
	}{{"bundle", rec.Bundle, true}, {"log path", rec.LogPath, false}, {"log directory", rec.LogDirectory, false}, {"cgroup path", rec.Cgroup, false}} {
		if field.value == "" && !field.needed {
			continue
		}
		if !filepath.IsAbs(field.value) || filepath.Clean(field.value) != field.value || field.value == "/" {
			return fmt.Errorf("%s %q is not a clean absolute path: %w", field.name, field.value, errdefs.ErrInvalidArgument)
		}
	}
	if rec.Deadline <= 0 {
		return fmt.Errorf("deadline %v is not positive: %w", rec.Deadline, errdefs.ErrInvalidArgument)
	}
	return nil
}

// start is Start for a container that was just made. After an error nothing of it is left.
func (c *container) start(ctx context.Context) error {
	rec := c.record()
	logIsNew := rec.LogPath != "" && !rec.logAt().Exists(ctx)
	err := c.tryStart(ctx, rec)
	if err == nil {
		close(c.ready)
		return nil
	}
	err = fmt.Errorf("start container %s: %w", c.id, err)
	if undo := c.undoStart(logIsNew); undo != nil { //nolint:contextcheck // a clean-up has its own time
		err = errors.Join(err, undo)
	}
	return err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// tryStart does the work of start and leaves the undoing to it.
func (c *container) tryStart(ctx context.Context, rec record) error {
	if err := c.s.checkHandler(rec.Handler); err != nil {
		return err
	}
	if err := os.Mkdir(c.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	rec.Version, rec.State = recordVersion, stateStarting
	if err := c.change(func(r *record) { *r = rec }); err != nil {
		return err
	}
	io := newStdio(c, &rec)
	c.mu.Lock()
	c.io = io
	c.mu.Unlock()
	opening, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := io.openLog(opening, c.id, rec.LogInode); err != nil {
		return err
	}
	ends, err := io.makeFIFOs(c.dir, &rec)
	defer ends.close()
	if err != nil {
		return err
	}
	c.beginOOM(rec)
	if err := c.runRuntime(ctx, rec, ends); err != nil {
		return err
	}
	ends.close()
	return c.recordStarted() //nolint:contextcheck // output is copied until the container ends
}

// runRuntime runs the container, for as long as it is wanted.
func (c *container) runRuntime(ctx context.Context, rec record, ends theirs) error {
	ctx, cancel := context.WithTimeout(ctx, rec.Deadline)
	defer cancel()
	c.s.wg.Go(func() {
		select {
		case <-c.unwanted:
			cancel()
		case <-ctx.Done():
		}
	})
	return c.driver.run(ctx, rec, ends)
}

// recordStarted notes that the container runs, and begins to log.
func (c *container) recordStarted() error {
	err := c.change(func(r *record) {
		r.State, r.PID, r.Started = stateRunning, c.init.pid, c.init.started
		r.StartedNano = c.init.startedBy(time.Now()).UnixNano()
	})
	if err != nil {
		return err
	}
	c.io.run()
	return nil
}

// undoStart removes all that a failed start left. It has its own time.
func (c *container) undoStart(logIsNew bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	c.mu.Lock()
	c.failed = true
	c.mu.Unlock()
	close(c.ready)
	rec := c.record()
	var errs []error
	if rec.Cgroup != "" && !rec.Infra {
		_, err := c.s.ooms.end(rec.Cgroup)
		errs = append(errs, err)
	}
	if rec.State != "" { // else nothing was started
		errs = append(errs, c.s.endRuntimes(ctx, c.dir+"/", spareNone))
	}
	if rec.Cgroup != "" && rec.State != "" {
		errs = append(errs, c.s.cfg.Cgroups.KillAll(ctx, rec.Cgroup))
	}
	if rec.State != "" {
		errs = append(errs, c.deleteFromRuntime(rec))
	}
	if logIsNew {
		errs = append(errs, rec.logAt().RemoveEmpty(ctx))
	}
	return errors.Join(append(errs, c.dispose())...)
}

// withConsole runs fn, which makes an OCI runtime send a terminal to a socket in
// dir, and returns the terminal's master side.
func (s *Supervisor) withConsole(ctx context.Context, dir string, fn func(socket string) error) (*os.File, error) {
	// The directory's own path could be too long for a socket.
	held, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	defer func() { _ = held.Close() }()
	path := fmt.Sprintf("/proc/%d/fd/%d/console", os.Getpid(), held.Fd())
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	defer func() { _ = listener.Close() }()
	if err := fn(path); err != nil {
		return nil, err
	}
	// The runtime has connected and sent; it is all in the socket's queue.
	deadline, _ := ctx.Deadline()
	if err := listener.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	return receiveTerminal(conn)
}

func receiveTerminal(conn *net.UnixConn) (*os.File, error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("receive terminal: %d control messages: %w", len(messages), errors.Join(err, errdefs.ErrInternal))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive terminal: %d descriptors: %w", len(fds), errors.Join(err, errdefs.ErrInternal))
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(fmt.Errorf("receive terminal: %w", err), unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "console"), nil
}
