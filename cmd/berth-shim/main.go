// Command berth-shim supervises the containers of a node. The daemon starts it;
// it outlives the daemon.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/shim/supervisor"
	"github.com/berth-runtime/berth/internal/shim/wire"
	"github.com/berth-runtime/berth/internal/version"
)

const (
	program = "berth-shim"
	// gcPercent keeps the heap small: it holds little, and what it allocates is short-lived.
	gcPercent = 40
	// memoryLimit is where the collector begins to work harder; no cap.
	memoryLimit = 64 << 20
	// firstFD is the first descriptor behind stdio.
	firstFD = 3
	// maxEvent bounds an event of a shim-v2, which is dropped.
	maxEvent = 4 << 20
	// maxThreads of Go code: log copying is the only load.
	maxThreads = 4
)

// init keeps the main goroutine on the main thread. OCI runtimes are forked there:
// they get the parent death signal of the thread that forked them, and it never ends before
// the process. No other goroutine can get it and enter a pod's namespaces on it.
func init() { runtime.LockOSThread() }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "berth-shim:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("berth-shim", flag.ContinueOnError)
	state := flags.String("state", "/run/berth", "state `directory` of the daemon")
	instance := flags.String("instance", "", "`name` that tells this daemon's supervisor from others on the host")
	reportFD := flags.Int("report-fd", -1, "`descriptor` to report on whether it serves")
	handoverFD := flags.Int("handover-fd", -1, "`descriptor` with what a predecessor handed over")
	collect := flags.Duration("collect-timeout", supervisor.DefaultCollectTimeout, "`time` after which an exec is ended that no caller has collected")
	openFiles := flags.Uint64("nofile", 0, "soft `limit` of open files of the programs that it runs; 0 keeps the present one")
	flags.String("address", "", "`address` that a shim-v2 was given; of no use")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *showVersion {
		fmt.Println(program, version.Version)
		return nil
	}
	if flags.Arg(0) == "publish" {
		// Older shims execute this for each event. What counts is asked of them.
		_, err := io.Copy(io.Discard, io.LimitReader(os.Stdin, maxEvent))
		return err
	}
	if *openFiles > 0 {
		return execLimited(*openFiles, args)
	}
	report := fileOf(*reportFD, "report")
	err := serve(*state, *instance, *collect, fileOf(*handoverFD, "handover"), report)
	if errors.Is(err, supervisor.ErrServed) && report != nil {
		_, err = io.WriteString(report, "ok")
		return err
	}
	if err != nil && report != nil {
		// The daemon reads no more once it serves, and then the log has the error.
		_, _ = io.WriteString(report, err.Error())
	}
	return err
}

// execLimited executes the program again with a soft limit of open files, which the programs of this process then have too: the Go runtime
// raises its own limit, and gives the former one to what it executes. Runc before 1.1.14, built with Go 1.19.9 or later, gives
// containers the limit that it was started with instead of theirs. So that is the one which most containers get.
func execLimited(soft uint64, args []string) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read own limit of open files: %w", err)
	}
	limit.Cur = min(soft, limit.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("set own limit of open files: %w", err)
	}
	argv := append([]string{os.Args[0]}, args...)
	err := syscall.Exec("/proc/self/exe", append(argv, "--nofile", "0"), os.Environ())
	return fmt.Errorf("execute itself: %w", err)
}

// fileOf opens an inherited descriptor.
func fileOf(fd int, name string) *os.File {
	if fd < 0 {
		return nil
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

func serve(state, instance string, collect time.Duration, handover, report *os.File) error {
	// Whatever was inherited must not get into containers.
	if err := unix.CloseRange(firstFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("mark inherited descriptors close-on-exec: %w", err)
	}
	// Its name is that of what was executed, which is "exe" after execLimited.
	if err := os.WriteFile("/proc/self/comm", []byte(program), 0); err != nil {
		return fmt.Errorf("name own process: %w", err)
	}
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	runtime.GOMAXPROCS(min(runtime.NumCPU(), maxThreads))
	syscall.Umask(0o022)
	logFile, err := supervisor.OpenLogFile(filepath.Join(state, "shim", wire.LogFile))
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(logFile, nil))
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // a hang-up means nothing here
	own, args := "/berth-shim", []string{"--state", state}
	if instance != "" {
		own, args = own+"-"+instance, append(args, "--instance", instance)
	}
	if collect != supervisor.DefaultCollectTimeout { // earlier versions do not have the flag
		args = append(args, "--collect-timeout", collect.String())
	}
	return supervisor.Run(ctx, supervisor.Config{
		Dir: filepath.Join(state, "shim"), Cgroup: own, Version: version.Version, Cgroups: host, Log: log,
		CollectTimeout: collect, Handover: handover, Args: args,
		Ready: func() {
			log.Info("serving", "pid", strconv.Itoa(os.Getpid()), "version", version.Version, "state", state)
			if report != nil {
				_, err := io.WriteString(report, "ok")
				if err = errors.Join(err, report.Close()); err != nil {
					log.Warn("report to the client that started this", "error", err)
				}
			}
		},
	})
}
