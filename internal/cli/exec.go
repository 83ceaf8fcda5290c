package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cli/session"
)

// sessionFlags say what a session is connected to.
type sessionFlags struct {
	interactive, tty bool
}

func (f *sessionFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.interactive, "interactive", "i", false, "pass stdin to the container")
	cmd.Flags().BoolVarP(&f.tty, "tty", "t", false, "allocate a TTY")
}

func (a *app) execCommand() *cobra.Command {
	var f sessionFlags
	cmd := &cobra.Command{
		Use:   "exec [-it] CONTAINER COMMAND [ARG…]",
		Short: "Run a command in a running container",
		Long: `Run a command in a running container and exit with its exit code.

Exit code 125 is an error of berth itself, 126 a command that cannot be executed, 127 a command that was not found.`,
		Args: takes(cobra.MinimumNArgs(2), "a container and a command"),
		RunE: func(cmd *cobra.Command, words []string) error {
			return ownCode(a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				return a.exec(ctx, n, words[0], words[1:], f)
			}))
		},
	}
	f.add(cmd)
	cmd.Flags().SetInterspersed(false) // what follows the container is the command's
	return cmd
}

func (a *app) exec(ctx context.Context, n *node, word string, command []string, f sessionFlags) error {
	c, err := n.inventory(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	container, err := c.findContainer(word)
	if err != nil {
		return err
	}
	if err := requireRunning(container); err != nil {
		return err
	}
	locate := func(ctx context.Context) (string, error) {
		resp, err := n.Exec(ctx, &runtimeapi.ExecRequest{
			ContainerId: container.Id, Cmd: command, Tty: f.tty,
			Stdin: f.interactive, Stdout: true, Stderr: !f.tty,
		})
		return resp.GetUrl(), err
	}
	err = a.session(ctx, locate, f, session.Streams{Stdout: a.Out, Stderr: a.Err})
	if err == nil {
		return nil
	}
	return commandError(runtimeError("run "+command[0]+" in container "+container.Metadata.GetName(), err))
}

func requireRunning(c *runtimeapi.Container) error {
	if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	return &hintedError{
		err:  fmt.Errorf("container %s (%s) is not running, it is %s", short(c.Id), c.Metadata.GetName(), containerState(c.State)),
		next: "See why with: berth logs " + short(c.Id) + "; berth inspect " + short(c.Id),
	}
}

func (a *app) attachCommand() *cobra.Command {
	var f sessionFlags
	cmd := &cobra.Command{
		Use:   "attach CONTAINER",
		Short: "Attach to stdin, stdout and stderr of a running container",
		Long: `Attach to stdin, stdout and stderr of a running container and exit with its exit code.

Detects stdin and TTY; -i and -t override. Ctrl-P Ctrl-Q detaches from a TTY; the container keeps running.`,
		Args: takes(cobra.ExactArgs(1), "the name or ID of one container"),
		RunE: func(cmd *cobra.Command, words []string) error {
			return ownCode(a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				find := !cmd.Flags().Changed("interactive") && !cmd.Flags().Changed("tty")
				return a.attachTo(ctx, n, words[0], f, find)
			}))
		},
	}
	f.add(cmd)
	return cmd
}

// attachTo attaches to a container; with find, the flags are found out.
func (a *app) attachTo(ctx context.Context, n *node, word string, f sessionFlags, find bool) error {
	c, err := n.inventory(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	container, err := c.findContainer(word)
	if err != nil {
		return err
	}
	if err := requireRunning(container); err != nil {
		return err
	}
	if find {
		if f, err = n.madeWith(ctx, container.Id); err != nil {
			return err
		}
	}
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := n.watchEnd(watchCtx, container.Id)
	err = a.session(ctx, n.attachURL(container.Id, f), f, session.Streams{Stdout: a.Out, Stderr: a.Err})
	if errors.Is(err, session.ErrDetached) {
		cancel()
		_, _ = watch.wait() // only ended, not needed
		return nil
	}
	if err != nil {
		cancel()
		_, _ = watch.wait() // the first error says more
		return fmt.Errorf("attach to container %s: %w", container.Metadata.GetName(), err)
	}
	st, err := watch.wait()
	if err != nil {
		return fmt.Errorf("read exit code of container %s: %w", container.Metadata.GetName(), err)
	}
	return exitOf(st)
}

// attachURL asks where to attach.
func (n *node) attachURL(id string, f sessionFlags) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		resp, err := n.Attach(ctx, &runtimeapi.AttachRequest{
			ContainerId: id, Tty: f.tty, Stdin: f.interactive, Stdout: true, Stderr: !f.tty,
		})
		return resp.GetUrl(), err
	}
}

// session connects what this program is connected to. With a terminal it is
// raw for as long as the session lasts.
func (a *app) session(ctx context.Context, locate func(context.Context) (string, error), f sessionFlags, s session.Streams) (err error) {
	s.TTY = f.tty
	if s.TLS, err = a.sessionTLS(); err != nil {
		return err
	}
	if f.interactive {
		in, openErr := openStdin(a.In)
		if openErr != nil {
			return openErr
		}
		defer func() { err = errors.Join(err, in.release()) }()
		s.Stdin = in
	}
	if !f.tty {
		return session.Run(ctx, locate, s)
	}
	if s.Stdin != nil {
		s.Stdin = &detachable{ReadCloser: s.Stdin}
	}
	fd, ok := terminal(a.In)
	if !ok {
		return session.Run(ctx, locate, s)
	}
	raw, err := openTerminal(fd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.close()) }()
	s.Resize = raw.sizes
	return session.Run(ctx, locate, s)
}

// exitOf passes the exit code of a container on.
func exitOf(st *runtimeapi.ContainerStatus) error {
	if st.GetExitCode() == 0 {
		return nil
	}
	out := &codeError{code: int(st.GetExitCode())}
	switch reason := st.GetReason(); reason {
	case "", "Completed", "Error":
	default:
		// More than a code: killed for memory, never started, or unknown.
		text := "the container ended with " + reason
		if st.GetMessage() != "" {
			text += ": " + st.GetMessage()
		}
		out.err = errors.New(text)
	}
	if out.code < 0 || out.code > 255 {
		out.code = exitBerth
	}
	return out
}

// ownCode gives the errors of berth itself the code that `run` and `exec`
// reserve for them.
func ownCode(err error) error {
	var usage *usageError
	var own *codeError
	if err == nil || errors.As(err, &usage) || errors.As(err, &own) {
		return err
	}
	return &codeError{code: exitBerth, err: err}
}
