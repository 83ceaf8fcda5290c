package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// commandDeadline bounds each program that prepares the suite. Compiling busybox is the longest of them.
const commandDeadline = 15 * time.Minute

// cache keeps what takes long to make or comes from the network: directories which are complete or not there.
type cache struct{ dir string }

func openCache() (cache, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return cache{}, fmt.Errorf("find a cache directory: %w", err)
	}
	dir = filepath.Join(dir, "berth", "conformance")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return cache{}, fmt.Errorf("make the cache directory: %w", err)
	}
	return cache{dir: dir}, nil
}

// get returns the directory of what name and recipe describe. If it is not there yet, fill makes it.
func (c cache) get(name, recipe string, fill func(dir string) error) (_ string, err error) {
	dir := filepath.Join(c.dir, fmt.Sprintf("%s-%.6x", name, sha256.Sum256([]byte(recipe))))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return dir, err
	}
	unfinished, err := os.MkdirTemp(c.dir, "unfinished-")
	if err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(unfinished)) }()
	if err := fill(unfinished); err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	if err := os.Rename(unfinished, dir); err != nil {
		return "", fmt.Errorf("keep %s: %w", name, err)
	}
	return dir, nil
}

// run runs a program in a directory and returns what it writes to its standard output.
func run(ctx context.Context, dir string, argv ...string) (string, error) {
	return command{dir: dir}.run(ctx, argv...)
}

// command is how a program is run, where that matters.
type command struct {
	dir   string
	env   []string // beside ours
	stdin string
}

func (c command) run(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin = c.dir, append(os.Environ(), c.env...), strings.NewReader(c.stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", strings.Join(argv, " "), err, lastLines(stdout.String()+stderr.String(), 20))
	}
	return strings.TrimSpace(stdout.String()), nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
