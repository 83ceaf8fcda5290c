package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/text"
)

const (
	// criuTimeout bounds `criu check`, which takes a moment.
	criuTimeout = 5 * time.Second
	// criuFresh is how long its outcome counts: CRIU may be installed or updated at any time.
	criuFresh = 10 * time.Second
)

// CRIU finds out on request whether CRIU works on this host. The zero value is ready for use.
type CRIU struct {
	mu      sync.Mutex // guards what follows; held while CRIU is asked, so that it is asked once
	checked time.Time
	problem error
}

// Check is nil if CRIU works, and else says why not in its own words. It waits for CRIU unless the outcome of a moment
// ago is known.
func (c *CRIU) Check(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.checked.IsZero() && time.Since(c.checked) < criuFresh {
		return c.problem
	}
	ctx, cancel := context.WithTimeout(ctx, criuTimeout)
	defer cancel()
	problem := checkCRIU(ctx)
	if !errors.Is(ctx.Err(), context.Canceled) { // else the caller has left, which says nothing about CRIU
		c.checked, c.problem = time.Now(), problem
	}
	return problem
}

func checkCRIU(ctx context.Context) error {
	path, err := exec.LookPath("criu") // as the OCI runtimes look for it
	if err != nil {
		return fmt.Errorf("criu is not installed: %w", errdefs.ErrNotFound)
	}
	var said excerpt
	cmd := exec.CommandContext(ctx, path, "check")
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &said, &said, time.Second
	err = cmd.Run()
	if err == nil {
		return nil
	}
	if words := criuErrors(said); words != "" {
		return fmt.Errorf("CRIU does not work with this kernel: %s", strings.TrimSuffix(words, "."))
	}
	return fmt.Errorf("execute %s check: %w: %s", path, err, text.Clean(strings.TrimSpace(string(said))))
}

// excerpt keeps the beginning of what is written to it.
type excerpt []byte

// Write takes everything.
func (e *excerpt) Write(p []byte) (int, error) {
	*e = append(*e, p[:min(len(p), maxMessage-len(*e))]...)
	return len(p), nil
}
