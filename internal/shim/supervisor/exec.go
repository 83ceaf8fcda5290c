package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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

	console *os.File // master side, set before ready is closed, or by a client that hands it back; guarded by container.mu
}

// close releases the descriptors.
func (e *execution) close() {
	e.process.close()
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
	e, err := c.newExecution(req.Id, req.Session)
	if err != nil {
		return nil, err
	}
	e.err = c.tryExec(ctx, e, req, stdio)
	close(e.ready)
	if e.err == nil {
		return e, nil
	}
	if e.process.pid > 1 {
		e.err = errors.Join(e.err, c.killTree(ctx, e.process))
	}
	return nil, errors.Join(fmt.Errorf("exec %s in container %s: %w", e.id, c.id, e.err), c.dropExecution(e))
}

// joinExec finds an exec that was started before its client lost the answer.
func (c *container) joinExec(ctx context.Context, req *wire.ExecRequest) (*execution, error) {
	e, err := c.execution(req.Id)
	if err == nil && e.session == req.Session {
		select {
		case <-e.ready:
			if err = e.err; err == nil {
				return e, nil
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, fmt.Errorf("exec %s in container %s was cut off, and nothing of it is left: %w", req.Id, c.id, errdefs.ErrUnavailable)
}

func (c *container) tryExec(ctx context.Context, e *execution, req *wire.ExecRequest, stdio wire.Files) error {
	ctx, cancel := context.WithTimeout(ctx, durationOf(req.DeadlineNano))
	defer cancel()
	runtime, err := ociruntime.New(c.record().Handler, c.s.children)
	if err != nil {
		return err
	}
	if err := os.Mkdir(e.dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	processFile := filepath.Join(e.dir, "process.json")
	if err := os.WriteFile(processFile, req.Process, 0o600); err != nil {
		return fmt.Errorf("write process: %w", err)
	}
	run := ociruntime.ExecRequest{
		ID: c.id, ProcessFile: processFile, PIDFile: filepath.Join(e.dir, pidFile), Scratch: e.dir, Terminal: req.Terminal,
		Stdio: ociruntime.Stdio{Stdin: stdio[wire.Stdin], Stdout: stdio[wire.Stdout], Stderr: stdio[wire.Stderr]},
	}
	release := c.s.children.claim()
	defer release()
	if req.Terminal {
		e.console, err = c.s.withConsole(ctx, e.dir, func(socket string) error {
			run.ConsoleSocket = socket
			return runtime.Exec(ctx, run)
		})
	} else {
		err = runtime.Exec(ctx, run)
	}
	pid, pidErr := ociruntime.ReadPID(run.PIDFile)
	if err != nil && pidErr != nil {
		return err // it was not started
	}
	if pidErr != nil {
		return pidErr
	}
	e.process.pid = pid
	if !c.s.follow(e.process) {
		return errors.Join(err, fmt.Errorf("process %d did not become a child of the supervisor: %w", pid, errdefs.ErrInternal))
	}
	if err != nil {
		return err
	}
	return save(filepath.Join(e.dir, recordFile), execRecord{
		ID: e.id, Session: req.Session, PID: pid, Started: e.process.started,
	})
}

// wait returns the exit of an exec.
func (c *container) waitExec(ctx context.Context, id string) (*wire.Exit, error) {
	e, err := c.execution(id)
	if err != nil {
		return nil, err
	}
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
// daemon is gone, and with it whoever read their output and kept their time.
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
		if err := c.closeStdin(); err != nil && !errdefs.IsNotFound(err) {
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
		err = c.killTree(ctx, e.process)
	}
	if err = errors.Join(err, c.dropExecution(e)); err != nil {
		c.s.log.Error("end exec of a lost session", "container", c.id, "exec", e.id, "error", err)
	}
}

// closeStdin ends the stdin of a container with stdin_once.
func (c *container) closeStdin() error {
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
	return nil
}
