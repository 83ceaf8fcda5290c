package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cli/session"
)

// notFound and notAllowed are what OCI runtimes say of a command that cannot be
// run: runc, crun and runsc, with or without a path.
var (
	notFound   = regexp.MustCompile(`(?i)executable file .*not found|exec: .*no such file or directory|executable .*no such file or directory`)
	notAllowed = regexp.MustCompile(`(?i)executable: (permission denied|operation not permitted)|exec: .*(permission denied|is a directory)`)
)

// noRuntime is what berthd says when it is the OCI runtime that is not there.
var noRuntime = regexp.MustCompile(`runtime handler "[^"]*": find program: `)

// commandError gives an error about a command that could not be run the exit
// code that shells use for it, and passes on the code of one that ran.
func commandError(err error) error {
	if exit, ok := errors.AsType[*session.ExitError](err); ok {
		return &codeError{code: exit.Code}
	}
	text := err.Error()
	switch {
	case noRuntime.MatchString(text):
		return err
	case notFound.MatchString(text):
		return &codeError{code: exitNotFound, err: err}
	case notAllowed.MatchString(text):
		return &codeError{code: exitCannot, err: err}
	}
	return err
}

// runtimeError says what was tried, unless the runtime says so itself: berthd
// names the call, the pod and the container in each of its errors.
func runtimeError(tried string, err error) error {
	text := explain(err)
	for _, call := range []string{"run sandbox: ", "create container", "start container: ", "exec in container ", "attach to container "} {
		if strings.HasPrefix(text, call) {
			return err
		}
	}
	return fmt.Errorf("%s: %w", tried, err)
}

// madeWith says whether a container has an input and a terminal. The CRI tells
// neither; runtimes do in what they add to a verbose status. What is not known
// is found out by the server's refusal.
func (n *node) madeWith(ctx context.Context, id string) (sessionFlags, error) {
	ctx, cancel := n.ask(ctx)
	defer cancel()
	resp, err := n.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return sessionFlags{}, fmt.Errorf("read status of container %s: %w", short(id), err)
	}
	found := sessionFlags{}
	for _, value := range resp.Info {
		var info any
		if json.Unmarshal([]byte(value), &info) == nil {
			found.search(info)
		}
	}
	return found, nil
}

// search looks for "tty" and "stdin" in the container's configuration, and for
// "terminal" in its OCI spec, wherever a runtime put them.
func (f *sessionFlags) search(info any) {
	m, ok := info.(map[string]any)
	if !ok {
		return
	}
	for key, value := range m {
		on, isBool := value.(bool)
		switch {
		case isBool && on && (key == "tty" || key == "terminal"):
			f.tty = true
		case isBool && on && key == "stdin":
			f.interactive = true
		default:
			f.search(value)
		}
	}
}
