// Package cli is the command line for people: it speaks CRI v1 to the socket
// of any runtime and says what it finds in tables, JSON or YAML. Errors say
// what to do next.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-runtime/berth/internal/config"
)

// Exit codes of the commands that run nothing. `run` and `exec` pass the code
// of what they ran, and use the last three for their own errors, as shells and
// other container tools do.
const (
	exitError    = 1
	exitUsage    = 2
	exitBerth    = 125
	exitCannot   = 126
	exitNotFound = 127

	// exitInterrupted is what shells make of SIGINT.
	exitInterrupted = 130
)

// endpointVariable names the environment variable that --endpoint defaults to.
const endpointVariable = "BERTH_ENDPOINT"

// defaultTimeout bounds a question that is answered from memory.
const defaultTimeout = 10 * time.Second

// IO is what a command is connected to.
type IO struct {
	In       *os.File
	Out, Err io.Writer
}

// app is one invocation of the command line.
type app struct {
	IO

	endpoint   string
	format     string
	configFile string
	trust      trustFlags
	timeout    time.Duration

	// now is the clock that ages are measured with.
	now func() time.Time
}

// Main runs one command line, without the program's name, and returns the
// exit code.
func Main(ctx context.Context, args []string, streams IO) int {
	a := &app{IO: streams, now: time.Now}
	root := a.root() //nolint:contextcheck // commands get theirs from cobra when they run
	root.SetArgs(args)
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	return a.report(root.ExecuteContext(ctx))
}

func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "berth",
		Short: "Run and inspect pods, containers and images on this node",
		Long: `Run and inspect pods, containers and images on this node.

Commands accept a name or a unique ID prefix.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return a.checkFormat()
		},
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.endpoint, "endpoint", "",
		"CRI `SOCKET` of the runtime (default: $"+endpointVariable+", then listen in the configuration file, then "+config.DefaultListen+")")
	flags.StringVarP(&a.format, "output", "o", formatTable, "output `FORMAT`: table, json or yaml")
	flags.StringVar(&a.configFile, "config", config.DefaultFile, "configuration `FILE` of berthd")
	flags.DurationVar(&a.timeout, "timeout", defaultTimeout, "timeout for unary requests")
	a.trust.add(flags)
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{cmd: c, err: flagError(err)}
	})
	a.group(cmd, "Containers and pods:", completeObjects, a.runCommand(), a.execCommand(), a.attachCommand(), a.logsCommand(),
		a.podsCommand(), a.psCommand(), a.statsCommand(), a.inspectCommand(), a.updateCommand(), a.eventsCommand(), a.stopCommand(), a.rmCommand())
	a.group(cmd, "Images:", completeImages, a.imagesCommand(), a.pullCommand(), a.rmiCommand())
	a.group(cmd, "This node:", nil, a.checkCommand(), a.configCommand(), a.versionCommand())
	return cmd
}

// group adds commands under a title of the help, with what completes their
// arguments.
func (a *app) group(root *cobra.Command, title string, complete completion, commands ...*cobra.Command) {
	root.AddGroup(&cobra.Group{ID: title, Title: title})
	for _, c := range commands {
		c.GroupID = title
		if complete != nil && c.ValidArgsFunction == nil {
			c.ValidArgsFunction = a.completer(complete)
		}
	}
	root.AddCommand(commands...)
}

// noCommand refuses words that are no command, with those that are close.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, " or "))
	}
	return &usageError{cmd: cmd, err: err}
}

// usageError is a command line that cannot be understood.
type usageError struct {
	cmd *cobra.Command
	err error
}

// code is the exit code; commands that pass the code of something else on have
// one for their own errors.
func (e *usageError) code() int {
	switch e.cmd.Name() {
	case "run", "exec", "attach":
		return exitBerth
	}
	return exitUsage
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// codeError ends the program with a code of its own.
type codeError struct {
	code int
	err  error // nil if there is nothing to say
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

// report says what went wrong and returns the exit code.
func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	switch {
	case errors.Is(err, syscall.EPIPE):
		return exitError // the reader of the output has left: an error message would reach no one
	case errors.Is(err, context.Canceled), status.Code(err) == codes.Canceled:
		fmt.Fprintln(a.Err, "berth: interrupted")
		return exitInterrupted
	}
	code := exitError
	var own *codeError
	if errors.As(err, &own) {
		code = own.code
		if own.err == nil {
			return code
		}
	}
	fmt.Fprintf(a.Err, "berth: %s\n", explain(err))
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintf(a.Err, "See: %s --help\n", usage.cmd.CommandPath())
		if own == nil {
			code = usage.code()
		}
	default:
		if hint := a.hint(err); hint != "" {
			fmt.Fprintln(a.Err, hint)
		}
	}
	return code
}

// takes wraps an argument check of cobra into a usage error.
func takes(check cobra.PositionalArgs, want string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			plural := "s"
			if len(args) == 1 {
				plural = ""
			}
			return &usageError{cmd: cmd, err: fmt.Errorf("%s takes %s, got %d argument%s", cmd.CommandPath(), want, len(args), plural)}
		}
		return nil
	}
}

// flagError says of a flag's value what would be right, in words of its own
// where the parser has only those of Go's library.
func flagError(err error) error {
	invalid, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err
	}
	want := map[string]string{
		"float64": "a number such as 1.5", "int": "a whole number", "int64": "a whole number",
		"bool": "true or false", "duration": "a duration such as 10s or 1m30s",
	}[invalid.GetFlag().Value.Type()]
	if want == "" {
		return err
	}
	return fmt.Errorf("--%s %q: want %s", invalid.GetFlag().Name, invalid.GetValue(), want)
}

// terminal returns the descriptor of a terminal, or ok false if v is none.
func terminal(v any) (fd int, ok bool) {
	f, ok := v.(*os.File)
	if !ok || f == nil || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	return int(f.Fd()), true
}
