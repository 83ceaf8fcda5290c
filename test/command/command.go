// Package command runs the programs that prepare a test: bounded in time, and with the end of their output in the error.
package command

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// deadline bounds each program. Compiling busybox and installing a Debian are the longest of them.
const deadline = 15 * time.Minute

// outputLines is how many lines of a program's output its error shows.
const outputLines = 20

// Command is how a program is run, where that matters.
type Command struct {
	// Dir is the directory to run it in.
	Dir string
	// Env is set beside our own environment.
	Env []string
	// Stdin is what it reads.
	Stdin string
}

// Run runs a program in a directory and returns what it writes to its standard output.
func Run(ctx context.Context, dir string, argv ...string) (string, error) {
	return Command{Dir: dir}.Run(ctx, argv...)
}

// Run runs a program and returns what it writes to its standard output.
func (c Command) Run(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin = c.Dir, append(os.Environ(), c.Env...), strings.NewReader(c.Stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", strings.Join(argv, " "), err, Tail(stdout.String()+stderr.String(), outputLines))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Tail returns the last lines of a text.
func Tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
