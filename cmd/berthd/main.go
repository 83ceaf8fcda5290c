// Command berthd is the daemon of a Berth node: it serves the Container Runtime
// Interface to kubelet. Containers outlive it; it may be restarted at any time.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	containerdlog "github.com/containerd/log"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/telemetry"
	"github.com/berth-runtime/berth/internal/version"
)

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

// gcPercent is how much garbage may gather beside what is in use. What is in
// use is a few MiB that last as long as the pods, so collecting often costs
// little, and memory per pod is a promise: with 60 pods it is 40 KiB each
// instead of 64 KiB with Go's own 100. GOGC in the environment wins.
const gcPercent = 40

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program; it answers the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	cfg, file, err := configure(args, stdout, stderr)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "berthd: %v\n", err)
		return exitUsage
	case cfg == nil:
		return 0
	}
	log, err := telemetry.NewLogger(stderr, cfg.Log.Level, cfg.Log.Format)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "berthd: %v\n", err)
		return exitUsage
	}
	takeLibraryLogs(telemetry.ForLibraries(log))
	ctx, stop := untilSignal(log)
	defer stop()
	if err := serve(ctx, cfg, file, log); err != nil {
		log.Error("berthd ends", "error", err)
		return exitFailure
	}
	log.Info("berthd ends")
	return 0
}

// takeLibraryLogs leads what libraries print on their own into our log: klog of
// Kubernetes' and the one that ttrpc shares with containerd's.
func takeLibraryLogs(log *slog.Logger) {
	klog.SetSlogLogger(log)
	containerdlog.L.Logger.SetOutput(slog.NewLogLogger(log.Handler(), slog.LevelDebug).Writer())
}

// configure reads flags and configuration, and returns the name of its file too. Neither a configuration nor an error
// means that there is nothing to do.
func configure(args []string, stdout, stderr io.Writer) (cfg *config.Config, source string, err error) {
	flags := pflag.NewFlagSet("berthd", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		_, _ = fmt.Fprintf(stdout, "Usage: berthd [flags]\n\nServes the Container Runtime Interface. Flags win over the file.\n\n%s", flags.FlagUsages())
	}
	file := flags.String("config", config.DefaultFile, "configuration file; the default one may be absent")
	root := flags.String("root", "", "directory for what survives a reboot (default "+config.DefaultRoot+")")
	state := flags.String("state", "", "directory for what does not (default "+config.DefaultState+")")
	listen := flags.String("listen", "", "socket to serve on (default "+config.DefaultListen+")")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return nil, "", err
	}
	if flags.NArg() > 0 {
		return nil, "", fmt.Errorf("unexpected argument %q; all settings are flags, see berthd --help", flags.Arg(0))
	}
	if *showVersion {
		_, err := fmt.Fprintln(stdout, "berthd", version.Version)
		return nil, "", err
	}
	if cfg, err = config.Load(*file, flags.Changed("config")); err != nil {
		return nil, "", err
	}
	for setting, value := range map[*string]string{&cfg.Root: *root, &cfg.State: *state, &cfg.Listen: *listen} {
		if value != "" {
			*setting = value
		}
	}
	if err := cfg.Validate(); err != nil {
		return nil, "", err
	}
	return cfg, *file, nil
}

// untilSignal answers a context that ends with the first signal to end. The
// second ends the process: containers do not mind.
//
// SIGHUP and SIGPIPE are caught, or a terminal that closes or a log collector
// that dies would take the daemon along. They are not ignored: that would be
// inherited by every container.
func untilSignal(log *slog.Logger) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	unheard := make(chan os.Signal, 1)
	signal.Notify(unheard, syscall.SIGPIPE)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-signals:
				if s == syscall.SIGHUP {
					log.Info("a hang-up changes nothing; restart the daemon to read its configuration again")
					continue
				}
				if ctx.Err() != nil {
					log.Warn("second signal, ending at once", "signal", s)
					os.Exit(exitFailure)
				}
				log.Info("ending; containers go on", "signal", s)
				cancel()
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		signal.Stop(unheard)
		close(done)
		cancel()
	}
}
