package ociruntime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/text"
)

const (
	// criuConfig is CRIU's variable for a file with further options. The
	// runtimes have no flags for those.
	criuConfig = "CRIU_CONFIG_FILE"
	// DumpLog is what CRIU writes into its working directory at a checkpoint.
	DumpLog = "dump.log"
	// RestoreLog is what it writes at a restore.
	RestoreLog = "restore.log"
	// maxCriuErrors bounds how many lines of CRIU's log become an error.
	maxCriuErrors = 4
)

// CheckpointRequest says how to write the state of a container down.
type CheckpointRequest struct {
	// Images gets CRIU's images, Work its log; both exist.
	ID, Images, Work, Scratch string
	// Config is a file with options of CRIU.
	Config string
}

// Checkpoint writes the processes of a container down and leaves them as they
// were, running or frozen. An error quotes CRIU's log.
func (r *Runtime) Checkpoint(ctx context.Context, req CheckpointRequest) error {
	args := []string{"checkpoint", "--leave-running", "--file-locks", "--image-path", req.Images, "--work-path", req.Work, req.ID}
	err := r.with(criuConfig+"="+req.Config).do(ctx, "checkpoint", req.Scratch, "", args, Stdio{})
	return explainCriu(err, filepath.Join(req.Work, DumpLog))
}

// RestoreRequest says how to run a container from a checkpoint.
type RestoreRequest struct {
	RunRequest
	// Images are what Checkpoint wrote, Work gets CRIU's log.
	Images, Work string
	// Config is a file with options of CRIU.
	Config string
	// LSMProfile is the security label of the processes, as
	// "selinux:LABEL" or "apparmor:PROFILE"; empty means the one that was
	// checkpointed. LSMMountContext replaces the SELinux context of mounts.
	LSMProfile, LSMMountContext string
}

// Restore makes a container whose processes go on where a checkpoint found
// them, and leaves it running. An error quotes CRIU's log.
func (r *Runtime) Restore(ctx context.Context, req RestoreRequest) error {
	args := []string{
		"restore", "--detach", "--file-locks", "--bundle", req.Bundle, "--pid-file", req.PIDFile,
		"--image-path", req.Images, "--work-path", req.Work,
	}
	for _, flag := range [][2]string{
		{"--console-socket", req.ConsoleSocket}, {"--lsm-profile", req.LSMProfile}, {"--lsm-mount-context", req.LSMMountContext},
	} {
		if flag[1] != "" {
			args = append(args, flag[0], flag[1])
		}
	}
	err := r.with(criuConfig+"="+req.Config).do(ctx, "restore", req.Scratch, req.Bundle, append(args, req.ID), req.Stdio)
	return explainCriu(err, filepath.Join(req.Work, RestoreLog))
}

// with returns a runtime whose commands get further variables.
func (r *Runtime) with(env ...string) *Runtime {
	next := *r
	next.env = slices.Concat(r.env, env)
	return &next
}

// criuError is an error in CRIU's log: time, "Error", the place in its source, and what it says. On a terminal it tells no
// time.
var criuError = regexp.MustCompile(`^(?:\([0-9.]+\)\s+)?(?:[0-9]+: )?Error \([^)]*\): (.*)$`)

// explainCriu completes the refusal of a runtime, which says no more than that
// CRIU failed, by CRIU's own words.
func explainCriu(err error, log string) error {
	var refused *CommandError
	if !errors.As(err, &refused) {
		return err
	}
	text, readErr := readBounded(log)
	if readErr != nil && !errors.Is(readErr, os.ErrNotExist) {
		return errors.Join(err, readErr)
	}
	message, _, _ := strings.Cut(refused.Message, "\n") // the second line names a log that will not be there any more
	if said := criuErrors(text); said != "" {
		message += ": CRIU says: " + said
	}
	return fmt.Errorf("%w: %w", &CommandError{Handler: refused.Handler, Op: refused.Op, Code: refused.Code, Message: message},
		errdefs.ErrFailedPrecondition)
}

// criuErrors returns the last errors in CRIU's log.
func criuErrors(log []byte) string {
	var said []string
	for line := range bytes.Lines(log) {
		match := criuError.FindSubmatch(bytes.TrimSpace(line))
		if match == nil || bytes.Contains(match[1], []byte("RLIMIT_NOFILE")) { // it goes on without more descriptors
			continue
		}
		said = append(said, string(match[1]))
	}
	if len(said) > maxCriuErrors {
		said = said[len(said)-maxCriuErrors:]
	}
	return text.Cut(strings.Join(said, "; "), maxMessage)
}
