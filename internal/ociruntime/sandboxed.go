package ociruntime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
)

// KillAll sends a signal to every process of the container.
func (r *Runtime) KillAll(ctx context.Context, scratch, id string, sig syscall.Signal) error {
	return r.do(ctx, "kill", scratch, "", []string{"kill", "--all", id, strconv.Itoa(int(sig))}, Stdio{})
}

// Wait waits for the end of a container's init process and returns its exit code,
// 128 + signal when a signal ended it. Only gVisor's runtime has such a command.
func (r *Runtime) Wait(ctx context.Context, scratch, id string) (code int, err error) {
	out, err := r.output(ctx, scratch, "wait", id)
	if err != nil {
		return 0, err
	}
	var answer struct {
		ExitStatus *int `json:"exitStatus"`
	}
	if err := json.Unmarshal(out, &answer); err != nil || answer.ExitStatus == nil {
		return 0, fmt.Errorf("%s wait: parse answer %.200q: %w", r.handler.Name, out, errors.Join(err, errdefs.ErrInternal))
	}
	return *answer.ExitStatus, nil
}

// RemoveState removes what a runtime has written down of a container and cannot read
// any more: a directory of its name, or gVisor's files.
func RemoveState(h Handler, id string) error {
	files, err := filepath.Glob(filepath.Join(h.Root, id+"_sandbox:*"))
	if err != nil {
		return fmt.Errorf("find state of container %s: %w", id, err)
	}
	var errs []error
	for _, file := range append(files, filepath.Join(h.Root, id)) {
		errs = append(errs, os.RemoveAll(file))
	}
	return errors.Join(errs...)
}
