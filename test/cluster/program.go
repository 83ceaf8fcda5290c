package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// programDeadline bounds how long a program may take to end after SIGTERM.
	programDeadline = 20 * time.Second
	logLines        = 25
)

// program is a running part of the cluster. Its output is in a file.
type program struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the process has ended
	// stopped is set before the cluster ends the program.
	stopped atomic.Bool
}

// launch starts a program that the cluster ends.
func (c *cluster) launch(ctx context.Context, name string, args ...string) error {
	p := &program{name: name, log: filepath.Join(c.dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the program has its own descriptor
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(c.programs, name), args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		// The log has the cause of an early end.
		if err := p.cmd.Wait(); err != nil && !p.stopped.Load() {
			fmt.Fprintf(os.Stderr, "%s ended: %v\n", name, err)
		}
	}()
	c.running = append(c.running, p)
	return nil
}

// stop ends the program and waits for it.
func (p *program) stop() error {
	p.stopped.Store(true)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("end %s: %w", p.name, err)
		}
		select {
		case <-p.done:
			return nil
		case <-time.After(programDeadline):
		}
	}
	return fmt.Errorf("%s does not end", p.name)
}

// printLogs writes the last lines of each program's log.
func (c *cluster) printLogs(w io.Writer) {
	for _, p := range c.running {
		text, err := os.ReadFile(p.log)
		if err != nil {
			text = []byte(err.Error())
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		fmt.Fprintf(w, "\n--- %s\n%s\n", p.name, strings.Join(lines[max(0, len(lines)-logLines):], "\n"))
	}
	if c.node != nil {
		fmt.Fprintf(w, "\n--- berthd\n%s\n", c.node.LogTail())
	}
}

// output runs a command to its end and returns what it wrote, standard error in the error.
func output(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, problem strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return out.String(), nil
}

// until calls try until it succeeds or the time is over, and returns its last error then.
func until(ctx context.Context, limit time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %v: %w", limit, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
