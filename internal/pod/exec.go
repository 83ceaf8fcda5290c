package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/pod/store"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/spec"
)

// Bounds of a command in a container.
const (
	// maxExecOutput is how much of each output stream ExecSync keeps; kubelet's
	// client accepts messages of 16 MiB in all. The rest is read and dropped.
	maxExecOutput = 8<<20 - 64<<10
	// drainGrace is how long output is waited for after the command ended:
	// something it started may hold its stdout for ever.
	drainGrace = 2 * time.Second
	// killGrace bounds the end of a command that is killed.
	killGrace = 10 * time.Second
)

// ExecResult is what a command left.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// Streams are the ends of a session. What is nil was not asked for.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize delivers the sizes of the client's terminal.
	Resize <-chan Size
	// Terminal says that the process has a terminal; Stderr is nil then.
	Terminal bool

	// size is the first of Resize, nil if none came in time.
	size *Size
}

// ExecSync runs a command in a container and returns its output and exit code.
// A time-out (0 is none) kills the command and what it started, nothing else;
// the error then wraps context.DeadlineExceeded.
func (e *Engine) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (ExecResult, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("command %q timed out after %s: %w", cmd, timeout, context.DeadlineExceeded))
		defer cancel()
	}
	stdout, stderr := &bounded{limit: maxExecOutput}, &bounded{limit: maxExecOutput}
	code, err := e.Exec(ctx, id, cmd, Streams{Stdout: stdout, Stderr: stderr})
	if err != nil {
		return ExecResult{}, err
	}
	return ExecResult{Stdout: stdout.take(), Stderr: stderr.take(), ExitCode: int32(code)}, nil //nolint:gosec // an exit code fits
}

// Exec runs a command in a container, connected to the streams, until it ends.
// When ctx ends first, the command and what it started are killed.
func (e *Engine) Exec(ctx context.Context, id string, cmd []string, s Streams) (int, error) {
	c, err := e.running(id)
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	if len(cmd) == 0 {
		return 0, fmt.Errorf("exec in %s: cmd is empty: %w", c, errdefs.ErrInvalidArgument)
	}
	base, err := e.processOf(c.rec.ID)
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", c, err)
	}
	req := shim.ExecRequest{ContainerID: c.rec.ID, ID: store.NewID()[:16], Process: spec.Process(base, cmd, s.Terminal),
		Terminal: s.Terminal, Deadline: e.opts.RuntimeDeadline}
	if s.Terminal {
		if s.size = firstSize(ctx, s.Resize); s.size != nil {
			req.Process.ConsoleSize = &specs.Box{Width: uint(s.size.Width), Height: uint(s.size.Height)}
		}
	}
	pipes, err := openPipes(&req, s)
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", c, err)
	}
	defer pipes.close()
	proc, err := e.opts.Shim.Exec(ctx, req)
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", c, execCause(ctx, err))
	}
	if s.Terminal {
		pipes.console = proc.Console
	}
	code, err := runExec(ctx, proc, pipes, s)
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", c, err)
	}
	return code, nil
}

// running finds a container that runs.
func (e *Engine) running(id string) (*container, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if state := c.stateLocked(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("%s is %s, not running: %w", c, stateName(state), errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// processOf reads the process of a container as its spec has it.
func (e *Engine) processOf(id string) (*specs.Process, error) {
	data, err := os.ReadFile(filepath.Join(e.bundleDir(id), "process.json"))
	if err != nil {
		return nil, fmt.Errorf("read the container's process: %w", err)
	}
	var p specs.Process
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("read the container's process: %w", err)
	}
	return &p, nil
}

// runExec carries data until the command has ended and its output is drained.
func runExec(ctx context.Context, proc *shim.Exec, p *execPipes, s Streams) (int, error) {
	stopped := make(chan struct{})
	var in, out errgroup.Group
	p.copyIn(&in, s)
	p.copyOut(&out, s)
	if s.Resize != nil && s.Terminal {
		in.Go(func() error {
			return s.follow(stopped, func(size Size) error { return proc.Resize(ctx, size.Width, size.Height) })
		})
	}
	code, err := proc.Wait(ctx)
	if err != nil { // the deadline has passed, or the end cannot be learned: it must not go on unseen
		err = errors.Join(execCause(ctx, err), killExec(ctx, proc))
	}
	lost := p.endOutput(&out)
	close(stopped)
	p.close()
	return code, errors.Join(err, lost)
}

// killExec ends a command whose time is up, and forgets it.
func killExec(ctx context.Context, proc *shim.Exec) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killGrace)
	defer cancel()
	if err := proc.Kill(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	_, err := proc.Wait(ctx)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// execCause says that time was up, and whose, where that is why. The
// supervisor may see the deadline pass a moment before ctx does.
func execCause(ctx context.Context, err error) error {
	if end, ok := ctx.Deadline(); ok && errors.Is(err, context.DeadlineExceeded) && time.Until(end) < time.Second {
		<-ctx.Done()
	}
	if ctx.Err() == nil {
		return err
	}
	if errors.Is(err, ctx.Err()) {
		return context.Cause(ctx) // err says the same in other words, by where it was met
	}
	return errors.Join(context.Cause(ctx), err)
}

// bounded keeps the first bytes written to it and drops the rest.
type bounded struct {
	buf   []byte
	limit int
}

// Write never fails: the command must not notice that its output is dropped.
func (b *bounded) Write(p []byte) (int, error) {
	room := b.limit - len(b.buf)
	b.buf = append(b.buf, p[:min(room, len(p))]...)
	return len(p), nil
}

func (b *bounded) take() []byte { return b.buf }
