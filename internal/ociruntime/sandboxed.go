package ociruntime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
