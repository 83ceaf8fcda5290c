package supervisor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

// execution is one exec'd process, from Exec to ExecRelease.
type execution struct {
	id      string
	session string
	dir     string
	process *process
	// ready is closed once the start is through, with process.pid set or err.
	ready chan struct{}
	err   error
	// uncollected ends a started process unless a caller comes for it: the one that requested it may
	// have left without a deadline that this process knows of.
	uncollected *time.Timer

	// stdin is the client's pipe and feed the FIFO that a shim-v2 reads it from; both are nil elsewhere. Guarded like console.
	stdin, feed *os.File

	console *os.File // master side, set before ready is closed, or by a client that hands it back; guarded by container.mu
}

// DefaultCollectTimeout is how long a started process waits for the caller that requested it.
const DefaultCollectTimeout = 15 * time.Second

// close releases the descriptors.
func (e *execution) close() {
	e.uncollected.Stop()
	e.process.close()
	for _, f := range []**os.File{&e.stdin, &e.feed} {
		if *f != nil {
			_ = (*f).Close()
			*f = nil
		}
	}
	if e.console != nil {
		_ = e.console.Close()
		e.console = nil
	}
}

// newExecution registers an exec.
func (c *container) newExecution(id, session string) (*execution, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[id] != nil {
		return nil, fmt.Errorf("exec %s in container %s: %w", id, c.id, errdefs.ErrAlreadyExists)
	}
	e := &execution{
		id: id, session: session, dir: filepath.Join(c.dir, execPrefix+id),
		process: newProcess(nil), ready: make(chan struct{}),
	}
	e.uncollected = time.AfterFunc(math.MaxInt64, func() {
		c.s.log.Warn("exec ended that no caller collected", "container", c.id, "exec", id)
		c.endExec(e)
	})
	c.execs[id] = e
	return e, nil
}

// execution returns an exec.
func (c *container) execution(id string) (*execution, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.execs[id]
	if e == nil {
		return nil, fmt.Errorf("exec %s in container %s: %w", id, c.id, errdefs.ErrNotFound)
	}
	return e, nil
}

// dropExecution forgets an exec and removes its files.
func (c *container) dropExecution(e *execution) error {
	c.mu.Lock()
	if c.execs[e.id] == e {
		delete(c.execs, e.id)
	}
	e.close()
	c.mu.Unlock()
	c.driver.releaseExec(e)
	return ociruntime.RemoveScratch(e.dir)
}

// exec starts a process in the container. After an error nothing of it is left.
func (c *container) exec(ctx context.Context, req *wire.ExecRequest, stdio wire.Files) (*execution, error) {
	if err := checkID("exec ID", req.Id); err != nil {
		return nil, err
	}
	if req.Join {
		return c.joinExec(ctx, req)
	}
	if err := c.running(); err != nil {
		return nil, err
	}
	e, err := c.newExecution(req.Id, req.Session) //nolint:contextcheck // its end has a deadline of its own
	if err != nil {
		return nil, err
	}
	e.err = c.tryExec(context.WithoutCancel(ctx), e, req, stdio)
	if e.err == nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		e.err = fmt.Errorf("the OCI runtime took longer than the caller waits: %w", ctx.Err())
	}
	if e.err == nil {
		e.uncollected.Reset(c.s.cfg.CollectTimeout)
		close(e.ready)
		return e, nil
	}
	defer close(e.ready)
	return nil, errors.Join(fmt.Errorf("exec in container %s: %w", c.id, e.err), c.undoFailedExec(context.WithoutCancel(ctx), e))
}

// undoFailedExec removes what a failed start has left.
func (c *container) undoFailedExec(ctx context.Context, e *execution) error {
	var errs []error
	cutOff := errors.Is(e.err, context.DeadlineExceeded)
	if cutOff { // crun leaves the process group that was killed
		errs = append(errs, c.s.endRuntimes(ctx, e.dir+"/", spareNone))
	}
	if e.process.pid > 1 {
		errs = append(errs, c.driver.killExec(ctx, e))
	} else if cutOff && c.starts.TryLock() {
		errs = append(errs, c.killStrays(ctx))
		c.starts.Unlock()
	}
	return errors.Join(append(errs, c.dropExecution(e))...)
}

// collect notes that a caller knows of the process.
func (e *execution) collect() {
	select {
	case <-e.ready:
		e.uncollected.Stop()
	default: // the caller that waits for the start comes back
	}
}

// joinExec finds an exec that was started before its client lost the answer.
func (c *container) joinExec(ctx context.Context, req *wire.ExecRequest) (*execution, error) {
	e, err := c.execution(req.Id)
	if err == nil {
		select {
		case <-e.ready:
			if err = e.err; err == nil && e.session == req.Session {
				e.collect()
				return e, nil
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, fmt.Errorf("exec in container %s was cut off, and nothing of it is left: %w", c.id, errdefs.ErrUnavailable)
}

func (c *container) tryExec(ctx context.Context, e *execution, req *wire.ExecRequest, stdio wire.Files) error {
	ctx, cancel := context.WithTimeout(ctx, durationOf(req.DeadlineNano))
	defer cancel()
	if err := os.Mkdir(e.dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	c.starts.RLock()
	err := c.driver.exec(ctx, e, req, stdio)
	c.starts.RUnlock()
	if err != nil {
		return err
	}
	return save(filepath.Join(e.dir, recordFile), execRecord{
		ID: e.id, Session: req.Session, PID: e.process.pid, Started: e.process.started,
	})
}

// wait returns the exit of an exec.
func (c *container) waitExec(ctx context.Context, id string) (*wire.Exit, error) {
	e, err := c.execution(id)
	if err != nil {
		return nil, err
	}
	e.collect()
	select {
	case <-e.process.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	code, sig, known, reason, at := e.process.outcome()
	return &wire.Exit{
		Id: id, Code: int32(code), Signal: int32(sig), Known: known, Reason: reason, AtNano: at.UnixNano(),
	}, nil
}

// endStrangers ends the execs and attachments that earlier sessions left: their
// daemon is gone, and with it the reader of their output and the timer of their deadlines.
func (c *container) endStrangers(session string) {
	c.mu.Lock()
	io := c.io
	var strangers []*execution
	for _, e := range c.execs {
		if e.session != session {
			strangers = append(strangers, e)
		}
	}
	c.mu.Unlock()
	for _, e := range strangers {
		c.s.wg.Go(func() { c.endExec(e) })
	}
	if io != nil && io.detach(func(_ string, t *tap) bool { return t.session != session }) {
		if err := c.closeStdin(context.Background()); err != nil && !errdefs.IsNotFound(err) {
			c.s.log.Error("close stdin of a lost session", "container", c.id, "error", err)
		}
	}
}

func (c *container) endExec(e *execution) {
	<-e.ready
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	var err error
	if e.err == nil {
		err = c.driver.killExec(ctx, e)
	}
	if err = errors.Join(err, c.dropExecution(e)); err != nil {
		c.s.log.Error("end exec of a lost session", "container", c.id, "exec", e.id, "error", err)
	}
}

// closeStdin ends the stdin of a container with stdin_once.
func (c *container) closeStdin(ctx context.Context) error {
	c.mu.Lock()
	io, rec := c.io, c.rec
	c.mu.Unlock()
	if io == nil {
		return notFound(c.id)
	}
	if !rec.Stdin || !rec.StdinOnce || rec.Terminal || rec.StdinClosed {
		return nil
	}
	if err := c.change(func(r *record) { r.StdinClosed = true }); err != nil {
		return err
	}
	io.closeStdin()
	return c.driver.closeStdin(ctx)
}
