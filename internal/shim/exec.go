package shim

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/shim/wire"
)

// Exec is a process inside a container. It belongs to the client that started it:
// when that client's daemon is replaced, the supervisor kills it.
type Exec struct {
	// ContainerID and ID are those of the request.
	ContainerID, ID string
	// PID is the process, in the host's PID namespace.
	PID int
	// Console is its terminal, when one was asked for; the caller closes it.
	Console *os.File

	client *Client
}

// Exec starts a process in a running container. Nil means that the OCI runtime has
// started it; what it does from then on, Wait tells. The caller must call Wait or Kill.
// The process is never started twice: when the supervisor dies during the call, the
// process is found again, or the error is ErrUnavailable and nothing of it is left.
func (c *Client) Exec(ctx context.Context, req ExecRequest) (*Exec, error) {
	stdio := wire.Files{}
	for kind, f := range map[string]*os.File{wire.Stdin: req.Stdin, wire.Stdout: req.Stdout, wire.Stderr: req.Stderr} {
		if f != nil {
			stdio[kind] = f
		}
	}
	defer stdio.Close()
	if req.Terminal && len(stdio) > 0 {
		return nil, fmt.Errorf("exec %s: a process with a terminal takes no other stdio: %w", req.ID, errdefs.ErrInvalidArgument)
	}
	process, err := json.Marshal(req.Process)
	if err != nil {
		return nil, fmt.Errorf("exec %s: encode process: %w", req.ID, err)
	}
	if req.Deadline <= 0 {
		req.Deadline = DefaultDeadline
	}
	ctx, cancel := context.WithTimeout(ctx, req.Deadline+runtimeMargin)
	defer cancel()
	what := "exec in container " + req.ContainerID
	e := &Exec{ContainerID: req.ContainerID, ID: req.ID, client: c}
	resp, err := c.requestExec(ctx, what, &wire.ExecRequest{
		ContainerId: req.ContainerID, Id: req.ID, Process: process, Terminal: req.Terminal,
		DeadlineNano: int64(req.Deadline), Session: c.session,
	}, stdio)
	if err != nil {
		if ctx.Err() != nil { // it may have been started, or be about to
			c.abandon(req.Deadline+runtimeMargin, e.undo) //nolint:contextcheck // it outlives the call
		}
		return nil, err
	}
	e.PID = int(resp.Pid)
	c.keep(ctx, execName(e.ContainerID, e.ID))
	if req.Terminal {
		e.Console, err = c.kept.dup(execName(e.ContainerID, e.ID), wire.Console)
		if err != nil {
			c.abandon(callTimeout, e.undo) //nolint:contextcheck // it outlives the call
			return nil, fmt.Errorf("%s: take console: %w", what, err)
		}
	}
	return e, nil
}

// requestExec sends the request, and after the loss of a link asks what became of it.
func (c *Client) requestExec(ctx context.Context, what string, req *wire.ExecRequest, stdio wire.Files) (*wire.ExecResponse, error) {
	return invoke(ctx, c, what, func(ctx context.Context, l *link) (*wire.ExecResponse, error) {
		if len(stdio) > 0 && !req.Join {
			req.Stdio, req.Staged = "stdio/"+req.ContainerId+"/"+rand.Text(), true
			if err := l.fds.Put(req.Stdio, stdio); err != nil {
				return nil, err
			}
		}
		resp, err := l.shim.Exec(ctx, req)
		switch {
		case lostLink(err):
			req.Join = true
		case err != nil && req.Staged:
			name := req.Stdio
			c.abandon(callTimeout, func(context.Context) { //nolint:contextcheck // it outlives the call
				_ = l.fds.Drop(name) // it expires, too
			})
		}
		return resp, err
	})
}

// undo ends a process that has no caller.
func (e *Exec) undo(ctx context.Context) {
	err := e.Kill(ctx)
	if err == nil {
		_, err = e.Wait(ctx)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		e.client.opts.Log.Warn("abandoned exec not ended", "container", e.ContainerID, "id", e.ID, "error", err)
	}
}

// Wait returns the exit code, 128 + signal when a signal ended the process. An
// error means that the code is not known. The supervisor then forgets the process.
func (e *Exec) Wait(ctx context.Context) (int, error) {
	what := "wait for exec in container " + e.ContainerID
	exit, err := e.await(ctx, what)
	if err != nil {
		return 0, err
	}
	if err := e.release(ctx); err != nil {
		e.client.opts.Log.Warn("release exec", "id", e.ID, "error", err)
	}
	if !exit.Known {
		return 0, fmt.Errorf("%s: %s: %w", what, exit.Reason, errdefs.ErrUnknown)
	}
	return int(exit.Code), nil
}

// await is not bounded by callTimeout: a process may run for days.
func (e *Exec) await(ctx context.Context, what string) (*wire.Exit, error) {
	for {
		l, err := e.client.current(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		exit, err := l.shim.ExecWait(ctx, e.ref())
		switch {
		case err == nil:
			return exit, nil
		case !lostLink(err):
			return nil, fmt.Errorf("%s: %w", what, wire.Decode(err))
		}
		select {
		case <-l.gone:
			e.client.drop(l)
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", what, ctx.Err())
		}
	}
}

// Kill ends the process and everything it started: its descendants and the
// sessions they opened. Nil means that none is left. The container is not touched.
func (e *Exec) Kill(ctx context.Context) error {
	what := "kill exec in container " + e.ContainerID
	_, err := invoke(ctx, e.client, what, func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.ExecKill(ctx, e.ref())
	})
	return err
}

// Resize sets the size of the terminal.
func (e *Exec) Resize(ctx context.Context, columns, rows uint16) error {
	return e.client.resize(ctx, e.ContainerID, e.ID, columns, rows)
}

func (e *Exec) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	e.client.kept.drop(execName(e.ContainerID, e.ID))
	_, err := invoke(ctx, e.client, "release exec "+e.ID, func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.ExecRelease(ctx, e.ref())
	})
	return err
}

func (e *Exec) ref() *wire.ExecRef {
	return &wire.ExecRef{ContainerId: e.ContainerID, Id: e.ID}
}

// Attachment is a live view of a container's output and a way to its stdin.
type Attachment struct {
	// Stdin writes to the container; nil when it was not asked for or the container has none.
	Stdin *os.File
	// Stdout and Stderr deliver what the container writes from the attach on. They end
	// with the container, or when the reader is so slow that it was dropped. With a
	// terminal all output is on Stdout, and Stderr is nil.
	Stdout, Stderr *os.File
	// Terminal says whether the container has one.
	Terminal bool

	client         *Client
	containerID    string
	id             string
	ownsStdin      atomic.Bool
	detachDeadline time.Duration
}

// Attach opens a view of a running container. The caller ends it with Close.
func (c *Client) Attach(ctx context.Context, id string, stdin bool) (*Attachment, error) {
	what := "attach to container " + id
	a := &Attachment{client: c, containerID: id, detachDeadline: callTimeout}
	_, err := invoke(ctx, c, what, func(ctx context.Context, l *link) (*wire.AttachResponse, error) {
		name := rand.Text()
		resp, err := l.shim.Attach(ctx, &wire.AttachRequest{Id: id, Stdin: stdin, Session: c.session, Attachment: name})
		var files wire.Files
		if err == nil {
			name = resp.Attachment // an older supervisor chooses it
			files, err = l.fds.Get("attach/" + name)
		}
		if err == nil && files[wire.Stdout] == nil {
			files.Close()
			err = fmt.Errorf("the attachment has ended: %w", errdefs.ErrUnavailable)
		}
		if err != nil {
			// The caller waits for it, so that there are no more of them than callers.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
			defer cancel()
			_, _ = l.shim.Detach(ctx, &wire.AttachRef{Id: id, Attachment: name}) // it expires, too
			return nil, err
		}
		a.id, a.Terminal = name, resp.Terminal
		a.ownsStdin.Store(stdin)
		a.Stdin, a.Stdout, a.Stderr = files[wire.Stdin], files[wire.Stdout], files[wire.Stderr]
		return resp, nil
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// detach ends an attachment; one that has ended is no error.
func (c *Client) detach(ctx context.Context, id, attachment string) error {
	_, err := invoke(ctx, c, "detach from container "+id, func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.Detach(ctx, &wire.AttachRef{Id: id, Attachment: attachment})
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// CloseStdin says that no more input comes. A container with stdin_once then
// reads the end of its stdin; another keeps its stdin open.
func (a *Attachment) CloseStdin(ctx context.Context) error {
	// The session and its end may both say so, at the same time.
	if !a.ownsStdin.Swap(false) {
		return nil
	}
	if a.Stdin != nil {
		_ = a.Stdin.Close()
	}
	a.client.kept.dropStdin(a.containerID)
	_, err := invoke(ctx, a.client, "close stdin of container "+a.containerID, func(ctx context.Context, l *link) (*wire.Empty, error) {
		return l.shim.CloseStdin(ctx, &wire.Container{Id: a.containerID})
	})
	if errdefs.IsNotFound(err) {
		return nil // it has ended, and its stdin with it
	}
	return err
}

// Resize sets the size of the container's terminal.
func (a *Attachment) Resize(ctx context.Context, columns, rows uint16) error {
	return a.client.Resize(ctx, a.containerID, columns, rows)
}

// Close ends the view, and with it the stdin of a container with stdin_once. The
// error wraps ErrResourceExhausted if the reader was dropped because it was too slow.
func (a *Attachment) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), a.detachDeadline)
	defer cancel()
	err := a.CloseStdin(ctx)
	for _, f := range []*os.File{a.Stdout, a.Stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
	return errors.Join(err, a.client.detach(ctx, a.containerID, a.id))
}
