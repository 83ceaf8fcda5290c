package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

// driver runs one container by means of its handler. There are three: command
// executes an OCI runtime for each operation and is the parent of what that leaves
// behind; sandboxed does so for a container whose processes no host process stands
// for; shimTask asks a shim-v2, which is the parent itself and tells how it ended.
type driver interface {
	// run starts the container and follows its init process. With a terminal it sets the console.
	run(ctx context.Context, rec record, ends theirs) error
	// join counts a predecessor's container among those of its pod.
	join()
	// gotThrough finds the process of a start that was cut off after it had succeeded.
	gotThrough(ctx context.Context) (pid int, started uint64, ok bool)
	// resume follows the init process of a predecessor's container again.
	resume(ctx context.Context)
	// kill signals the init process, killAll ends every process of the container.
	kill(ctx context.Context, sig syscall.Signal) error
	killAll(ctx context.Context) error
	// update changes the limits; resources is JSON.
	update(ctx context.Context, resources []byte) error
	// settle is called once the init process has ended: afterwards all that it wrote is in its FIFOs.
	settle(ctx context.Context)
	// delete removes a container without processes from the runtime.
	delete(ctx context.Context, rec record) error
	// closeStdin is called after the supervisor's end of stdin was closed.
	closeStdin(ctx context.Context) error
	// resize sets the size of a terminal that is not the console itself.
	resize(ctx context.Context, execID string, columns, rows uint16) error

	// exec starts a process and follows it. With a terminal it sets the console.
	exec(ctx context.Context, e *execution, req *wire.ExecRequest, stdio wire.Files) error
	// resumeExec follows a predecessor's exec again.
	resumeExec(e *execution)
	// carryStdin goes on to carry a client's input to an exec.
	carryStdin(e *execution)
	// killExec ends an exec and what it started, also one whose start was cut off.
	killExec(ctx context.Context, e *execution) error
	// releaseExec forgets an exec that has ended.
	releaseExec(e *execution)
}

// command drives a container with an OCI runtime.
type command struct{ c *container }

func (d command) runtime() (*ociruntime.Runtime, error) {
	return ociruntime.New(d.c.record().Handler, d.c.s.children)
}

func (d command) run(ctx context.Context, rec record, ends theirs) error {
	c := d.c
	release := c.s.children.claim()
	defer release()
	if err := d.begin(ctx, rec, ends); err != nil {
		return err
	}
	return c.s.followChild(c.init)
}

// begin starts the container and learns the ID of its process.
func (d command) begin(ctx context.Context, rec record, ends theirs) error {
	c := d.c
	runtime, err := d.runtime()
	if err != nil {
		return err
	}
	req := ociruntime.RunRequest{
		ID: c.id, Bundle: rec.Bundle, PIDFile: filepath.Join(c.dir, pidFile), Scratch: c.dir,
		Stdio: ociruntime.Stdio{Stdin: ends.stdin, Stdout: ends.stdout, Stderr: ends.stderr},
	}
	if !rec.Terminal {
		err = c.io.explain(c.launch(ctx, runtime, &rec, req))
	} else {
		var console *os.File
		console, err = c.s.withConsole(ctx, c.dir, func(socket string) error {
			req.ConsoleSocket = socket
			return c.launch(ctx, runtime, &rec, req)
		})
		if err == nil {
			c.io.setConsole(console)
		}
	}
	if err != nil {
		return err
	}
	c.init.pid, err = ociruntime.ReadPID(req.PIDFile)
	return err
}

func (d command) join() {}

func (d command) gotThrough(ctx context.Context) (pid int, started uint64, ok bool) {
	c := d.c
	pid, err := ociruntime.ReadPID(filepath.Join(c.dir, pidFile))
	if err != nil {
		return 0, 0, false
	}
	if _, recorded := c.s.journal.Last(c.id); recorded {
		return pid, 0, true
	}
	// The runtime wrote the ID a moment ago; that the process is in the container's
	// cgroup excludes what little doubt is left.
	cgroup := c.record().Cgroup
	procs, err := c.s.cfg.Cgroups.Procs(cgroup, true)
	if cgroup != "" && (err != nil || !slices.Contains(procs, pid)) {
		return 0, 0, false
	}
	stat, err := proc.Read(pid)
	return pid, stat.Started, err == nil && d.wasStarted(ctx)
}

// wasStarted asks the runtime: gVisor's writes the ID of the process when the container
// is made, which is not started then.
func (d command) wasStarted(ctx context.Context) bool {
	runtime, err := ociruntime.New(d.c.record().Handler, unreaped{d.c.s.children})
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	state, err := runtime.State(ctx, d.c.dir, d.c.id)
	return err == nil && state.Started()
}

func (d command) resume(context.Context) {
	if c := d.c; !c.s.followRecorded(c.init) {
		c.s.log.Warn("the process of a container is gone", "container", c.id, "pid", c.init.pid)
	}
}

func (d command) kill(ctx context.Context, sig syscall.Signal) error {
	return d.c.signalInit(ctx, sig)
}

func (d command) killAll(ctx context.Context) error {
	return d.c.s.cfg.Cgroups.KillAll(ctx, d.c.record().Cgroup)
}

func (d command) update(ctx context.Context, resources []byte) error {
	runtime, err := d.runtime()
	if err != nil {
		return err
	}
	file := filepath.Join(d.c.dir, "resources.json")
	if err := os.WriteFile(file, resources, 0o600); err != nil {
		return fmt.Errorf("write resources: %w", err)
	}
	return errors.Join(runtime.Update(ctx, d.c.dir, d.c.id, file), os.Remove(file))
}

func (d command) settle(context.Context) {} // the FIFOs are the container's own

func (d command) delete(ctx context.Context, rec record) error {
	runtime, err := ociruntime.New(rec.Handler, d.c.s.children)
	if err != nil {
		return err
	}
	return runtime.Delete(ctx, d.c.dir, d.c.id)
}

func (d command) closeStdin(context.Context) error { return nil } // the container reads from the FIFO itself

func (d command) resize(context.Context, string, uint16, uint16) error { return nil } // the console is the container's

func (d command) exec(ctx context.Context, e *execution, req *wire.ExecRequest, stdio wire.Files) error {
	c := d.c
	runtime, err := d.runtime()
	if err != nil {
		return err
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
	return errors.Join(err, c.s.followChild(e.process))
}

func (d command) resumeExec(e *execution) {
	if !d.c.s.followRecorded(e.process) {
		d.c.s.log.Warn("the process of an exec is gone", "container", d.c.id, "exec", e.id, "pid", e.process.pid)
	}
}

func (d command) carryStdin(*execution) {} // it is the exec's own

func (d command) killExec(ctx context.Context, e *execution) error {
	if e.process.pid == 0 { // its start was cut off
		pid, err := ociruntime.ReadPID(filepath.Join(e.dir, pidFile))
		if err != nil {
			return nil //nolint:nilerr // or else it was not started
		}
		stat, err := proc.Read(pid)
		if err != nil {
			return nil //nolint:nilerr // it has ended
		}
		e.process.pid, e.process.started = pid, stat.Started
	}
	return d.c.killTree(ctx, e.process)
}

func (d command) releaseExec(*execution) {}

// undoTime is what deleting a container from its runtime may take.
func undoTime() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), undoTimeout)
}

// callTime bounds one question to a runtime that must not hold anything up.
const callTime = 5 * time.Second

// driverOf returns what drives the container of a record.
func (c *container) driverOf(rec *record) driver {
	switch {
	case rec.Handler.Type == ociruntime.TypeShimV2:
		return &shimTask{c: c}
	case rec.Sandboxed:
		return sandboxed{command{c: c}}
	}
	return command{c: c}
}

// checkHandler refuses a handler that cannot be used, before anything is made.
func (s *Supervisor) checkHandler(h ociruntime.Handler) error {
	if h.Type == ociruntime.TypeShimV2 {
		_, err := s.shimProgram(h)
		return err
	}
	_, err := ociruntime.New(h, s.children)
	return err
}
