package ociruntime

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/internal/text"
)

const (
	// maxLog bounds how much of a runtime's log or output is read.
	maxLog = 64 << 10
	// maxMessage bounds the part of it that goes into an error.
	maxMessage = 2 << 10
	// CloneDirectory is the variable that tells crun where to bind-mount its own
	// program for an instant, see RemoveScratch; else it is /tmp.
	CloneDirectory = "_LIBCONTAINER_STATEDIR"
)

// Command is one invocation of a runtime. Stdio that is nil is /dev/null.
type Command struct {
	// Path is the program, Args its arguments without the name, Env what it gets
	// in addition to the caller's environment, Dir where it runs.
	Path string
	Args []string
	Env  []string
	Dir  string
	// Stdin, Stdout and Stderr are given to the program as they are.
	Stdin, Stdout, Stderr *os.File
}

// Runner runs commands. The supervisor has its own, since it reaps every child
// of its process; everybody else uses Local.
type Runner interface {
	// Run returns the exit code, or 128 + signal, once the command has ended. When
	// ctx ends first the command is killed and reaped, and the error is the context's.
	Run(ctx context.Context, cmd *Command) (code int, err error)
}

// Local runs commands with os/exec.
type Local struct{}

// Run implements Runner.
func (Local) Run(ctx context.Context, cmd *Command) (int, error) {
	c := exec.CommandContext(ctx, cmd.Path, cmd.Args...)
	c.Dir, c.Env = cmd.Dir, append(os.Environ(), cmd.Env...)
	// An interface that holds a nil *os.File is not nil.
	if cmd.Stdin != nil {
		c.Stdin = cmd.Stdin
	}
	if cmd.Stdout != nil {
		c.Stdout = cmd.Stdout
	}
	if cmd.Stderr != nil {
		c.Stderr = cmd.Stderr
	}
	// The command ends with this process, also if it was not even executed yet. The kernel takes the thread for its parent.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// What it has started goes with it.
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	err := c.Start()
	if err == nil {
		score := proc.LimitOOMScore(c.Process.Pid, 0)
		err = errors.Join(score, c.Wait())
	}
	var ended *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return -1, ctx.Err()
	case err == nil:
		return 0, nil
	case errors.As(err, &ended):
		if status, ok := ended.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return ended.ExitCode(), nil
	default:
		return -1, err
	}
}

// Runtime is an OCI runtime that is there.
type Runtime struct {
	handler Handler
	path    string
	runner  Runner
	env     []string // of its commands, beside that of this process
}

// New finds the handler's program. The error is ErrFailedPrecondition when it is
// missing or cannot be executed, ErrInvalidArgument when the handler is malformed.
func New(h Handler, runner Runner) (*Runtime, error) {
	if h.Type != "" && h.Type != TypeOCI {
		return nil, fmt.Errorf("runtime handler %q: type %q is not %q: %w", h.Name, h.Type, TypeOCI, errdefs.ErrInvalidArgument)
	}
	if h.Root == "" || !filepath.IsAbs(h.Root) {
		return nil, fmt.Errorf("runtime handler %q: root %q is not an absolute path: %w", h.Name, h.Root, errdefs.ErrInvalidArgument)
	}
	path, err := exec.LookPath(h.Path)
	if err != nil {
		return nil, fmt.Errorf("runtime handler %q: find program: %w: %w", h.Name, err, errdefs.ErrFailedPrecondition)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("runtime handler %q: find program: %w", h.Name, err)
	}
	return &Runtime{handler: h, path: path, runner: runner}, nil
}

// StateDir is where the runtime keeps the state of container id.
func (r *Runtime) StateDir(id string) string { return filepath.Join(r.handler.Root, id) }

// global returns the flags before the subcommand.
func (r *Runtime) global(logFile string) []string {
	args := []string{"--root", r.handler.Root}
	if logFile != "" {
		args = append(args, "--log", logFile, "--log-format", "json")
	}
	if r.handler.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	keys := make([]string, 0, len(r.handler.Options))
	for key := range r.handler.Options {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		if value := r.handler.Options[key]; value == "" {
			args = append(args, "--"+key)
		} else {
			args = append(args, "--"+key+"="+value)
		}
	}
	return args
}

// Stdio of a process to be run: it becomes the process's own. Scratch is a
// directory for the runtime's log, which becomes the error.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}

// RunRequest says how to run a container.
type RunRequest struct {
	ID, Bundle, PIDFile, ConsoleSocket, Scratch string
	Stdio                                       Stdio
}

// Run creates and starts a container and leaves it running.
func (r *Runtime) Run(ctx context.Context, req RunRequest) error {
	args := []string{"run", "--detach", "--bundle", req.Bundle, "--pid-file", req.PIDFile}
	if req.ConsoleSocket != "" {
		args = append(args, "--console-socket", req.ConsoleSocket)
	}
	return r.do(ctx, "run", req.Scratch, req.Bundle, append(args, req.ID), req.Stdio)
}

// ExecRequest says how to run a process in a container.
type ExecRequest struct {
	ID, ProcessFile, PIDFile, ConsoleSocket, Scratch string
	Terminal                                         bool
	Stdio                                            Stdio
}

// Exec starts a process in a running container and leaves it running.
func (r *Runtime) Exec(ctx context.Context, req ExecRequest) error {
	args := []string{"exec", "--detach", "--process", req.ProcessFile, "--pid-file", req.PIDFile}
	if req.Terminal {
		args = append(args, "--tty", "--console-socket", req.ConsoleSocket)
	}
	return r.do(ctx, "exec", req.Scratch, "", append(args, req.ID), req.Stdio)
}

// Kill sends a signal to the container's init process.
func (r *Runtime) Kill(ctx context.Context, scratch, id string, sig syscall.Signal) error {
	return r.do(ctx, "kill", scratch, "", []string{"kill", id, strconv.Itoa(int(sig))}, Stdio{})
}

// Delete removes what the runtime keeps of a container; a running one is killed,
// an unknown one is no error.
func (r *Runtime) Delete(ctx context.Context, scratch, id string) error {
	return r.do(ctx, "delete", scratch, "", []string{"delete", "--force", id}, Stdio{})
}

// Update changes limits; file holds them as JSON.
func (r *Runtime) Update(ctx context.Context, scratch, id, file string) error {
	return r.do(ctx, "update", scratch, "", []string{"update", "--resources", file, id}, Stdio{})
}

// Started tells whether the container's process was started, even if it has ended since.
func (s State) Started() bool { return s.Status == "running" || s.Status == "stopped" }

// State is what a runtime says about a container.
type State struct {
	ID     string `json:"id"`
	Status string `json:"status"` // creating, created, running, stopped
	PID    int    `json:"pid"`
}

// State asks for the container's state; an unknown one is ErrNotFound.
func (r *Runtime) State(ctx context.Context, scratch, id string) (State, error) {
	var state State
	out, err := r.output(ctx, scratch, "state", id)
	if err != nil {
		return state, err
	}
	if err := json.Unmarshal(out, &state); err != nil {
		return state, fmt.Errorf("%s state: parse answer: %w", r.handler.Name, err)
	}
	return state, nil
}

// output runs a command and returns what it printed.
func (r *Runtime) output(ctx context.Context, scratch string, args ...string) ([]byte, error) {
	out, err := os.CreateTemp(scratch, "out-")
	if err != nil {
		return nil, fmt.Errorf("%s %s: make output file: %w", r.handler.Name, args[0], err)
	}
	defer func() { _ = os.Remove(out.Name()) }()
	defer func() { _ = out.Close() }()
	if err := r.do(ctx, args[0], scratch, "", args, Stdio{Stdout: out}); err != nil {
		return nil, err
	}
	return readBounded(out.Name())
}

// do runs one command and turns its failure into the runtime's own words.
func (r *Runtime) do(ctx context.Context, op, scratch, dir string, args []string, stdio Stdio) error {
	logFile := filepath.Join(scratch, "runtime-"+op+".log") // restore.log is CRIU's
	errFile := stdio.Stderr
	// Without a log the explanation is on stderr. That of exec becomes the process's own.
	if errFile == nil && op != "exec" {
		f, err := os.OpenFile(filepath.Join(scratch, op+".err"), os.O_CREATE|os.O_RDWR|os.O_TRUNC|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			return fmt.Errorf("%s %s: make error file: %w", r.handler.Name, op, err)
		}
		defer func() { _ = os.Remove(f.Name()) }()
		defer func() { _ = f.Close() }()
		errFile = f
	}
	defer func() { _ = os.Remove(logFile) }()
	var null *os.File
	if op == "run" || op == "exec" { // the streams become those of a container's process
		var err error
		if null, err = openNull(); err != nil {
			return fmt.Errorf("%s %s: %w", r.handler.Name, op, err)
		}
		defer func() { _ = null.Close() }()
	}
	code, err := r.runner.Run(ctx, &Command{
		Path: r.path, Args: append(r.global(logFile), args...), Dir: dir, Env: append([]string{CloneDirectory + "=" + scratch}, r.env...),
		Stdin: cmp.Or(stdio.Stdin, null), Stdout: cmp.Or(stdio.Stdout, null), Stderr: cmp.Or(errFile, null),
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("%s %s did not finish in time: %w", r.handler.Name, op, ctx.Err())
	case err != nil:
		return fmt.Errorf("execute %s: %w: %w", r.path, err, errdefs.ErrFailedPrecondition)
	case code == 0:
		return nil
	}
	message := lastError(logFile)
	if message == "" && errFile != stdio.Stderr {
		text, _ := readBounded(errFile.Name()) // an unreadable explanation is none
		message = strings.TrimSpace(string(text))
	}
	return &CommandError{Handler: r.handler.Name, Op: op, Code: code, Message: message}
}

// CommandError is a runtime's refusal.
type CommandError struct {
	// Handler and Op say who was asked for what, Code is its exit code.
	Handler, Op string
	Code        int
	// Message is the runtime's own, empty when it gave none.
	Message string
}

// Error gives the runtime's own words.
func (e *CommandError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("%s %s ended with code %d and no explanation", e.Handler, e.Op, e.Code)
	}
	return fmt.Sprintf("%s %s: %s", e.Handler, e.Op, e.Message)
}

// Unwrap returns the kind of the error, as far as the message tells.
func (e *CommandError) Unwrap() error {
	if e.Op != "run" && (strings.Contains(e.Message, "does not exist") || strings.Contains(e.Message, "error opening file `") && strings.Contains(e.Message, "status")) {
		return errdefs.ErrNotFound
	}
	if e.Op == "update" && (strings.Contains(e.Message, "unable to set memory limit") || strings.Contains(strings.ToLower(e.Message), "device or resource busy")) {
		return errdefs.ErrFailedPrecondition // the container uses more than the new limit
	}
	for _, text := range []string{"executable file", "open executable", "file name too long", "is a directory", "no such file or directory", "permission denied", "not a directory", "is not running", "stopped container"} {
		if strings.Contains(strings.ToLower(e.Message), text) && (e.Op == "run" || e.Op == "exec") {
			return errdefs.ErrFailedPrecondition
		}
	}
	return errdefs.ErrUnknown
}

// lastError returns the last error in a runtime's log. Its lines are JSON; what is
// not (a crash, a linker's complaint) is taken as it is.
func lastError(file string) string {
	text, err := readBounded(file)
	if err != nil {
		return "" // no log: it did not come that far
	}
	return parseLog(text)
}

func parseLog(log []byte) string {
	var last, plain string
	for line := range bytes.Lines(log) {
		var entry struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
		}
		if json.Unmarshal(line, &entry) != nil {
			plain = strings.TrimSpace(plain + " " + string(bytes.TrimSpace(line)))
			continue
		}
		if entry.Level == "error" || entry.Level == "fatal" || entry.Level == "panic" || entry.Level == "" {
			last = entry.Msg
		}
	}
	if last == "" {
		last = plain
	}
	return text.Cut(last, maxMessage)
}

// readBounded returns the last maxLog bytes of a file.
func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > maxLog {
		if _, err := f.Seek(-maxLog, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, maxLog))
}

// ReadPID reads a PID file that a runtime wrote.
func ReadPID(file string) (int, error) {
	text, err := readBounded(file)
	if err != nil {
		return 0, fmt.Errorf("read PID file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("read PID file %s: %q is not a process ID: %w", file, text, errdefs.ErrInternal)
	}
	return pid, nil
}
