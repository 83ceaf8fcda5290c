package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cli/logfile"
	"github.com/berth-runtime/berth/internal/cli/session"
)

// The values of --pull.
const (
	pullMissing = "missing"
	pullAlways  = "always"
	pullNever   = "never"
)

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [-it] [--rm] IMAGE [COMMAND] [ARG…]",
		Short: "Run a command in a new pod with one container",
		Long: `Run a command in a new pod with one container. Pulls the image if it is missing and exits with the command's exit code.

Without -d the output is shown until the command exits, and Ctrl-C stops the container; with -it, Ctrl-P Ctrl-Q detaches
and the container keeps running. Exit code 125 is an error of berth itself, 126 a command that cannot be executed, 127 a
command that was not found.

On a node with a kubelet, kubelet removes these pods: it removes every pod that it did not create.`,
		Example: `  berth run --rm -it busybox sh
  berth run -d --name web -p 8080:80 -v ./site:/usr/share/nginx/html:ro nginx`,
		ValidArgsFunction: a.completer(completeImages),
		Args: func(cmd *cobra.Command, words []string) error {
			if len(words) == 0 {
				return &usageError{cmd: cmd, err: errNoImage}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, words []string) error {
			if err := o.check(); err != nil {
				return &usageError{cmd: cmd, err: err}
			}
			return ownCode(a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				r := &run{app: a, node: n, o: &o}
				return r.all(ctx, words[0], words[1:])
			}))
		},
	}
	o.add(cmd)
	return cmd
}

// run is one `berth run`.
type run struct {
	*app

	node *node
	o    *runOptions

	pod       *runtimeapi.PodSandbox
	container string
	logPath   string
}

// started is what `run -d` says. The names are stable.
type started struct {
	Container string `json:"container"`
	Pod       string `json:"pod"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// all runs the command. Until the container has started, whatever was made is
// taken back if something fails.
func (r *run) all(ctx context.Context, image string, command []string) error {
	pod, err := r.o.pod()
	if err != nil {
		return err
	}
	// Everything in the flags is looked at before anything is made.
	if _, err := r.o.container(image, image, command, pod); err != nil {
		return err
	}
	if err := r.checkFree(ctx); err != nil {
		return err
	}
	imageID, err := r.image(ctx, image)
	if err != nil {
		return err
	}
	if err := r.create(ctx, pod, image, imageID, command); err != nil {
		return errors.Join(err, r.cleanUp(ctx))
	}
	if err := r.start(ctx); err != nil {
		return commandError(errors.Join(err, r.cleanUp(ctx)))
	}
	if r.o.detach {
		s := started{Container: r.container, Pod: r.pod.Id, Name: r.o.name, Namespace: r.o.namespace}
		if r.format != formatTable {
			return r.structured(s)
		}
		_, err := fmt.Fprintln(r.Out, r.container)
		return err
	}
	return r.foreground(ctx)
}

// checkFree refuses a name that was given and is another pod's. The CRI lets
// pods share a name, but then no command could tell which is meant.
func (r *run) checkFree(ctx context.Context) error {
	pods, err := r.node.pods(ctx)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for _, p := range pods {
		if p.Metadata.GetName() == r.o.name && p.Metadata.GetNamespace() == r.o.namespace {
			return &hintedError{
				err:  fmt.Errorf("name %s is in use by pod %s, which is %s", r.o.name, short(p.Id), podState(p.State)),
				next: "Choose another name with --name, or remove that pod with: berth rm " + short(p.Id),
			}
		}
	}
	return nil
}

// image returns the ID of the image, which it pulls if it has to.
func (r *run) image(ctx context.Context, ref string) (string, error) {
	if r.o.pull != pullAlways {
		image, err := r.node.findImage(ctx, ref)
		switch {
		case err != nil:
			return "", fmt.Errorf("find image %s: %w", ref, err)
		case image != nil:
			return image.Id, nil
		case r.o.pull == pullNever:
			return "", &hintedError{err: fmt.Errorf("image %s not found on this node", ref), next: "Pull it with: berth pull " + ref}
		}
	}
	return r.app.pull(ctx, r.node, ref, r.o.creds, false)
}

func (r *run) create(ctx context.Context, pod *runtimeapi.PodSandboxConfig, ref, imageID string, command []string) error {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	config, err := r.o.container(ref, imageID, command, pod)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(pod.LogDirectory, 0o750); err != nil {
		return &hintedError{err: fmt.Errorf("create log directory: %w", err), next: "Choose another directory with --log-dir."}
	}
	// Known before it exists, so that cleaning up finds the logs.
	r.pod = &runtimeapi.PodSandbox{Metadata: pod.Metadata, Annotations: pod.Annotations}
	made, err := r.node.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: r.o.handler})
	if err != nil {
		return runtimeError("run pod "+r.o.name, err)
	}
	r.pod.Id = made.PodSandboxId
	created, err := r.node.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: made.PodSandboxId, Config: config, SandboxConfig: pod,
	})
	if err != nil {
		return runtimeError("create container "+r.o.name, err)
	}
	r.container = created.ContainerId
	return nil
}

func (r *run) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if _, err := r.node.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.container}); err != nil {
		return runtimeError("start container "+r.o.name, err)
	}
	st, err := r.node.containerStatus(ctx, r.container)
	if err != nil {
		return fmt.Errorf("read status of container %s: %w", r.o.name, err)
	}
	r.logPath = st.LogPath
	return nil
}

// cleanUp removes the pod and all that is in it, also after a signal.
func (r *run) cleanUp(ctx context.Context) error {
	if r.pod == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	if r.pod.Id == "" {
		return removeLogDir(runLogDir(r.pod))
	}
	if err := r.node.removePod(ctx, r.pod); err != nil {
		return fmt.Errorf("remove pod %s: %w", short(r.pod.Id), err)
	}
	return nil
}

// foreground shows the container's output until it ends, and stops it when we
// get a signal to stop.
func (r *run) foreground(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // signals stop the container, not us
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := r.node.watchEnd(watchCtx, r.container)
	stopSignals := r.forwardSignals(ctx, watch.ended)
	defer stopSignals()

	var err error
	if r.o.tty {
		err = r.terminal(ctx, watch.ended)
	} else {
		err = r.output(ctx, watch.ended)
	}
	if errors.Is(err, session.ErrDetached) {
		cancel()
		_, _ = watch.wait() // only ended, not needed
		fmt.Fprintf(r.Err, "Detached from %s; it keeps running. Attach again with: berth attach %s\n", r.o.name, r.o.name)
		return nil
	}
	if err != nil {
		cancel()
	}
	st, waitErr := watch.wait()
	if err == nil && waitErr != nil {
		err = fmt.Errorf("read exit code of container %s: %w", r.o.name, waitErr)
	}
	if errors.Is(err, session.ErrLost) {
		return err // the container goes on, and the user has the message
	}
	if err = errors.Join(err, r.end(ctx, err == nil)); err != nil {
		return err
	}
	return exitOf(st)
}

// end gives back what the container held: all of it with --rm, else what the
// pod of an ended one has of the host. One that may run still is left alone.
func (r *run) end(ctx context.Context, ended bool) error {
	switch {
	case r.o.remove:
		return r.cleanUp(ctx)
	case !ended:
		return nil
	}
	if err := r.node.stopPod(ctx, r.pod.Id); err != nil {
		return fmt.Errorf("stop pod %s: %w", r.o.name, err)
	}
	return nil
}

// forwardSignals stops the container at the first signal and kills it at the
// second. The function that is returned ends that.
func (r *run) forwardSignals(ctx context.Context, ended <-chan struct{}) func() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		grace := r.o.grace
		for {
			select {
			case <-done:
				return
			case <-ended:
				return
			case <-signals:
			}
			now := grace
			group.Go(func() { r.stop(ctx, now) })
			grace = 0
		}
	})
	return func() {
		signal.Stop(signals)
		close(done)
		group.Wait()
	}
}

// stop stops the container; that it cannot be stopped does not end us, since
// another signal may come.
func (r *run) stop(ctx context.Context, grace time.Duration) {
	if err := r.node.stopContainer(ctx, r.container, grace); err != nil {
		fmt.Fprintf(r.Err, "berth: stop container %s: %s\n", r.o.name, explain(err))
	}
}

// output shows the log, which holds everything since the start, and connects
// standard input if that was asked for.
func (r *run) output(ctx context.Context, ended <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var input sync.WaitGroup
	var inputErr error
	if r.o.interactive {
		input.Go(func() {
			// The output comes from the log; here its end tells that of the
			// container, which input alone does not.
			url := r.node.attachURL(r.container, r.o.sessionFlags)
			inputErr = r.session(ctx, url, r.o.sessionFlags, session.Streams{Stdout: io.Discard, Stderr: io.Discard})
		})
	}
	printer := &linePrinter{out: r.Out, err: r.Err}
	err := logfile.Read(ctx, r.logPath, logfile.Options{Tail: -1, Ended: ended}, printer.print)
	cancel()
	input.Wait()
	select {
	case <-ended:
		return err // input that a container did not wait for is no loss
	default:
	}
	if err == nil && inputErr != nil && !errors.Is(inputErr, context.Canceled) {
		err = fmt.Errorf("forward stdin: %w", inputErr)
	}
	return err
}
