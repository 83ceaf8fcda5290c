package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listFlags are those that pods and ps have in common.
type listFlags struct {
	all, quiet, noTrunc bool
	labels              []string
	namespace           string
}

func (f *listFlags) add(cmd *cobra.Command, all string) {
	flags := cmd.Flags()
	flags.BoolVarP(&f.all, "all", "a", false, all)
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print IDs only")
	flags.BoolVar(&f.noTrunc, "no-trunc", false, "show IDs in full")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "only those with this label, as `KEY` or KEY=VALUE (may be repeated)")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "only those in this `NAMESPACE`")
}

func (f *listFlags) match(labels map[string]string, namespace string) bool {
	if f.namespace != "" && namespace != f.namespace {
		return false
	}
	for _, want := range f.labels {
		key, value, exact := strings.Cut(want, "=")
		got, ok := labels[key]
		if !ok || exact && got != value {
			return false
		}
	}
	return true
}

func (f *listFlags) id(id string) string {
	if f.noTrunc {
		return id
	}
	return short(id)
}

func (a *app) podsCommand() *cobra.Command {
	var f listFlags
	var metrics bool
	cmd := &cobra.Command{
		Use:   "pods [--metrics [POD…]]",
		Short: "List pods or their metrics",
		Long: `List pods, or with --metrics the metrics of ready pods and their containers: all of them or those named.

The metrics are those that kubelet serves at /metrics/cadvisor if PodAndContainerStatsFromCRI is enabled. Column OF is
the series' further label: a device, an interface or a kind of event.`,
		Args: func(cmd *cobra.Command, words []string) error {
			if metrics {
				return nil
			}
			return takes(cobra.NoArgs, "no arguments but with --metrics")(cmd, words)
		},
		RunE: func(cmd *cobra.Command, words []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				if metrics {
					return a.listMetrics(ctx, n, f, words)
				}
				return a.listPods(ctx, n, f)
			})
		},
	}
	f.add(cmd, "include pods that are not ready")
	cmd.Flags().BoolVar(&metrics, "metrics", false, "show metrics of pods and containers")
	cmd.ValidArgsFunction = a.completer(completePods)
	return cmd
}

func (a *app) listPods(ctx context.Context, n *node, f listFlags) error {
	pods, err := n.pods(ctx)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	pods = slices.DeleteFunc(pods, func(p *runtimeapi.PodSandbox) bool {
		return !f.all && p.State != runtimeapi.PodSandboxState_SANDBOX_READY || !f.match(p.Labels, p.Metadata.GetNamespace())
	})
	if f.quiet {
		for _, p := range pods {
			if _, err := fmt.Fprintln(a.Out, p.Id); err != nil {
				return err
			}
		}
		return nil
	}
	items, err := n.podItems(ctx, pods)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	return a.show(items, func() *table {
		t := &table{head: []string{"POD ID", "NAMESPACE", "NAME", "STATE", "AGE", "IP", "RUNTIME"}}
		for _, p := range items {
			ip := "host"
			if len(p.IPs) > 0 {
				ip = p.IPs[0]
			} else if p.State != stateReady {
				ip = "-"
			}
			t.add(f.id(p.ID), p.Namespace, p.Name, p.State, a.age(p.CreatedAt), ip, orDefault(p.Handler))
		}
		return t
	})
}

// orDefault names the handler that is used when none was asked for.
func orDefault(handler string) string {
	if handler == "" {
		return "(default)"
	}
	return handler
}

func (a *app) psCommand() *cobra.Command {
	var f listFlags
	var pod string
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Args:  takes(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error { return a.listContainers(ctx, n, f, pod) })
		},
	}
	f.add(cmd, "include containers that are not running")
	cmd.Flags().StringVarP(&pod, "pod", "p", "", "only containers of this `POD`")
	return cmd
}

func (a *app) listContainers(ctx context.Context, n *node, f listFlags, podName string) error {
	all, err := n.inventory(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	podID := ""
	if podName != "" {
		pod, err := all.findPod(podName)
		if err != nil {
			return err
		}
		podID = pod.Id
	}
	containers := slices.DeleteFunc(all.containers, func(c *runtimeapi.Container) bool {
		return !f.all && c.State != runtimeapi.ContainerState_CONTAINER_RUNNING || podID != "" && c.PodSandboxId != podID ||
			!f.match(c.Labels, all.podOf(c).GetMetadata().GetNamespace())
	})
	if f.quiet {
		for _, c := range containers {
			if _, err := fmt.Fprintln(a.Out, c.Id); err != nil {
				return err
			}
		}
		return nil
	}
	items, err := n.containerItems(ctx, containers, all.pods)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	if err := n.nameImages(ctx, items); err != nil {
		return err
	}
	return a.show(items, func() *table {
		t := &table{head: []string{"CONTAINER ID", "NAME", "POD", "STATE", "AGE", "RESTARTS", "IMAGE"}}
		for _, c := range items {
			t.add(f.id(c.ID), c.Name, c.Pod.Namespace+"/"+c.Pod.Name, c.stateText(), a.age(c.CreatedAt),
				fmt.Sprint(c.Attempt), shortImage(c.Image))
		}
		return t
	})
}

// nameImages gives a name to images that are known by their ID only, as those
// of containers that kubelet made are.
func (n *node) nameImages(ctx context.Context, items []containerItem) error {
	if !slices.ContainsFunc(items, func(c containerItem) bool { return strings.HasPrefix(c.Image, "sha256:") }) {
		return nil
	}
	images, err := n.listImages(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	names := map[string]string{}
	for _, i := range images {
		if len(i.RepoTags) > 0 {
			names[i.Id] = i.RepoTags[0]
		}
	}
	for i := range items {
		if name := names[items[i].Image]; name != "" {
			items[i].Image = name
		}
	}
	return nil
}
