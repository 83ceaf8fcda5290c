package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultGrace is how long a container may take to stop before it is killed.
const defaultGrace = 10 * time.Second

func (a *app) stopCommand() *cobra.Command {
	var grace time.Duration
	var all bool
	cmd := &cobra.Command{
		Use:   "stop [POD|CONTAINER…]",
		Short: "Stop containers, or pods and their containers",
		Long: `Stop containers, or pods and their containers.

Stopping a pod releases its addresses and ports; it cannot be started again. Stopping a container of "berth run" stops
its pod.`,
		Args: takes(cobra.ArbitraryArgs, "the names or IDs of pods or containers"),
		RunE: func(cmd *cobra.Command, words []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				return a.each(ctx, n, cmd, words, all, func(ctx context.Context, c *inventory, t target) error {
					if err := n.stop(ctx, c, t, grace); err != nil {
						return fmt.Errorf("stop %s %s: %w", t.kind(), t.name(), err)
					}
					return nil
				})
			})
		},
	}
	cmd.Flags().VarP(newSeconds(&grace, defaultGrace), "grace", "t", "`SECONDS`, or a duration such as 1m, between SIGTERM and SIGKILL; 0 kills at once")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all pods on this node")
	return cmd
}

func (a *app) rmCommand() *cobra.Command {
	var force, all bool
	cmd := &cobra.Command{
		Use:   "rm [POD|CONTAINER…]",
		Short: "Remove containers, or pods and their containers",
		Long: `Remove containers, or pods and their containers.

Removing a container of "berth run" removes its pod and logs.`,
		Args: takes(cobra.ArbitraryArgs, "the names or IDs of pods or containers"),
		RunE: func(cmd *cobra.Command, words []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				return a.each(ctx, n, cmd, words, all, func(ctx context.Context, c *inventory, t target) error {
					if err := n.remove(ctx, c, t, force); err != nil {
						return fmt.Errorf("remove %s %s: %w", t.kind(), t.name(), err)
					}
					return nil
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill running containers first")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all pods on this node")
	return cmd
}

// seconds is a flag for a time: a number of seconds, as other tools have it, or
// a duration with its unit.
type seconds struct{ value *time.Duration }

func newSeconds(value *time.Duration, initial time.Duration) seconds {
	*value = initial
	return seconds{value: value}
}

// String returns the duration with its unit.
func (s seconds) String() string {
	if s.value == nil {
		return ""
	}
	return s.value.String()
}

// Type is the name of the type for help; the usage of the flag has a better one.
func (seconds) Type() string { return "seconds" }

// Set reads what was written on the command line.
func (s seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if n, numErr := strconv.ParseUint(text, 10, 31); numErr == nil {
		d, err = time.Duration(n)*time.Second, nil //nolint:gosec // 31 bits
	}
	if err != nil || d < 0 {
		return errors.New("want seconds such as 10, or a duration such as 1m30s")
	}
	*s.value = d
	return nil
}

// each does something to every pod or container that is named, and prints what
// was named once it is done. One that fails does not keep the others from it.
func (a *app) each(ctx context.Context, n *node, cmd *cobra.Command, words []string, all bool,
	do func(context.Context, *inventory, target) error,
) error {
	if all == (len(words) > 0) {
		return &usageError{cmd: cmd, err: errors.New("want pods, containers or --all")}
	}
	c, err := n.inventory(ctx)
	if err != nil {
		return fmt.Errorf("list pods and containers: %w", err)
	}
	var errs []error
	for _, p := range c.pods {
		if all {
			words = append(words, p.Id)
		}
	}
	for _, word := range words {
		t, err := c.find(word)
		if err == nil {
			err = do(ctx, c, c.whole(t))
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if all {
			word = t.name()
		}
		if _, err := fmt.Fprintln(a.Out, word); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// whole returns the pod in place of a container that `berth run` made: the two
// came together and go together.
func (c *inventory) whole(t target) target {
	if t.container == nil {
		return t
	}
	if pod := c.podOf(t.container); pod != nil && runLogDir(pod) != "" && len(c.containersOf(pod.Id)) == 1 {
		return target{pod: pod}
	}
	return t
}

// stop stops a container, or each container of a pod and then the pod.
func (n *node) stop(ctx context.Context, c *inventory, t target, grace time.Duration) error {
	if t.container != nil {
		return n.stopContainer(ctx, t.container.Id, grace)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	for _, ctr := range c.containersOf(t.pod.Id) {
		if ctr.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			group.Go(func() error { return n.stopContainer(groupCtx, ctr.Id, grace) })
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return n.stopPod(ctx, t.pod.Id)
}

func (n *node) stopContainer(ctx context.Context, id string, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, grace+changeTimeout)
	defer cancel()
	// Whole seconds are all that the CRI knows; rounded up, so that a short
	// grace does not become none.
	seconds := int64((grace + time.Second - 1) / time.Second)
	_, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: seconds})
	return err
}

func (n *node) stopPod(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	_, err := n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

// remove removes what does not run, or with force whatever it is.
func (n *node) remove(ctx context.Context, c *inventory, t target, force bool) error {
	if err := c.refuseRunning(t, force); err != nil {
		return err
	}
	if t.container != nil {
		return n.removeContainer(ctx, t.container.Id)
	}
	return n.removePod(ctx, t.pod)
}

func (c *inventory) refuseRunning(t target, force bool) error {
	candidates := []*runtimeapi.Container{t.container}
	if t.pod != nil {
		candidates = c.containersOf(t.pod.Id)
	}
	for _, ctr := range candidates {
		if ctr.State == runtimeapi.ContainerState_CONTAINER_RUNNING && !force {
			return &hintedError{
				err:  fmt.Errorf("container %s (%s) is running", short(ctr.Id), ctr.Metadata.GetName()),
				next: "Stop it first with: berth stop " + short(t.id()) + ", or use --force",
			}
		}
	}
	return nil
}

func (n *node) removeContainer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	_, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	return err
}

// removePod stops and removes a pod, and the logs of one that `berth run` made.
func (n *node) removePod(ctx context.Context, pod *runtimeapi.PodSandbox) error {
	if err := n.stopPod(ctx, pod.Id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
		return err
	}
	if dir := runLogDir(pod); dir != "" {
		return removeLogDir(dir)
	}
	return nil
}

// logDirAnnotation marks a pod of `berth run` and says where its logs are. The
// CRI does not tell a pod's log directory, and a runtime never removes logs.
const logDirAnnotation = "berth-runtime.github.io/log-directory"

// runLogDir returns the log directory of a pod that `berth run` made, empty for
// any other. What an annotation says is only believed if the directory is named
// after the pod, so that no pod can name those of another pod.
func runLogDir(pod *runtimeapi.PodSandbox) string {
	dir := pod.GetAnnotations()[logDirAnnotation]
	if !filepath.IsAbs(dir) || filepath.Base(dir) != logDirName(pod.GetMetadata()) {
		return ""
	}
	return filepath.Clean(dir)
}

// logDirName is the name of a pod's log directory, as kubelet builds it.
func logDirName(m *runtimeapi.PodSandboxMetadata) string {
	return m.GetNamespace() + "_" + m.GetName() + "_" + m.GetUid()
}

// removeLogDir removes the files that a runtime writes for one container, and
// the directory if nothing else is in it.
func removeLogDir(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log*"))
	if err != nil {
		return fmt.Errorf("remove logs: %w", err)
	}
	for _, log := range logs {
		if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove logs: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove logs: %w", err)
	}
	return nil
}
