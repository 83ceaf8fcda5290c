// Cluster is the program behind `make cluster`: it runs a single-node Kubernetes cluster on Berth and
// checks what users of a cluster do. etcd, the control plane, kubelet, kube-proxy and kubectl are built
// from their Go modules. The cluster runs in its own PID, mount and network namespaces and removes
// everything when it ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// deadline bounds the start and the checks, the build of Kubernetes excepted.
const deadline = 30 * time.Minute

func main() {
	bin := flag.String("bin", "bin", "directory of berthd, berth-shim and berth")
	handler := flag.String("handler", "", "default OCI runtime, runc or crun; empty leaves the choice to Berth")
	only := flag.String("run", "", "run only the checks whose name matches this regular expression")
	hold := flag.Bool("hold", false, "keep the cluster until interrupted, and print how to reach it")
	isolated := flag.Bool("isolated", false, "internal: this process is in namespaces of its own")
	programs := flag.String("programs", "", "internal: directory of the Kubernetes programs")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	err := run(ctx, options{bin: *bin, handler: *handler, only: *only, hold: *hold, programs: *programs}, *isolated)
	if err != nil {
		if !errors.Is(err, errReported) {
			fmt.Fprintf(os.Stderr, "\ncluster: %v\n", err)
		}
		cancel()
		os.Exit(1)
	}
}

// options are the settings of a run.
type options struct {
	// bin is the directory of Berth's programs, programs that of Kubernetes'.
	bin, programs string
	// handler is the default OCI runtime.
	handler string
	// only selects checks by name.
	only string
	// hold keeps the cluster until the user interrupts it.
	hold bool
}

func run(ctx context.Context, o options, isolated bool) (err error) {
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if _, err := regexp.Compile(o.only); err != nil {
		return fmt.Errorf("-run %q: %w", o.only, err)
	}
	if !isolated {
		if o.programs, err = build(ctx); err != nil {
			return err
		}
		return isolate(ctx, o)
	}
	if os.Getpid() == 1 {
		return reap(ctx)
	}
	return runCluster(ctx, o)
}

// runCluster starts the cluster, runs the checks and removes everything.
func runCluster(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		return fmt.Errorf("make the directory of the cluster: %w", err)
	}
	// As /run and /var/lib are: root of a user namespace reaches the directories below.
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	c := &cluster{options: o, dir: dir}
	defer func() {
		if err != nil {
			c.printLogs(os.Stderr)
		}
		err = errors.Join(err, c.end(context.WithoutCancel(ctx)))
	}()
	limited, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	if err := c.start(limited); err != nil {
		return err
	}
	failed := c.runChecks(limited, os.Stdout)
	if o.hold {
		fmt.Printf("\nThe cluster stays until you interrupt this. To use it in its namespaces:\n  KUBECONFIG=%s %s get pods -A\n",
			c.adminConfig(), filepath.Join(o.programs, "kubectl"))
		<-ctx.Done()
	}
	if failed > 0 {
		return fmt.Errorf("%d checks failed", failed)
	}
	return nil
}
