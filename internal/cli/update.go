package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// noLimit is the word for no limit.
const noLimit = "max"

func (a *app) updateCommand() *cobra.Command {
	var limits limitFlags
	cmd := &cobra.Command{
		Use:   "update CONTAINER…",
		Short: "Change resource limits of containers",
		Long: `Change resource limits of created or running containers without a restart.

Limits that are not named keep their value. Either all changes are made or none. --cpus 0 and --memory max remove a limit.`,
		Args: takes(cobra.MinimumNArgs(1), "the names or IDs of containers"),
		RunE: func(cmd *cobra.Command, words []string) error {
			r, err := newLimits(cmd, limits)
			if err != nil {
				return &usageError{cmd: cmd, err: err}
			}
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error { return a.update(ctx, n, words, r) })
		},
	}
	limits.add(cmd.Flags())
	return cmd
}

// newLimits returns what the flags change.
func newLimits(cmd *cobra.Command, limits limitFlags) (*runtimeapi.LinuxContainerResources, error) {
	lift := map[*string]bool{}
	for _, text := range []*string{&limits.memory, &limits.memorySwap} {
		if lift[text] = *text == noLimit; lift[text] {
			*text = ""
		}
	}
	r, err := limits.resources()
	if err != nil {
		return nil, err
	}
	if lift[&limits.memory] {
		r.MemoryLimitInBytes = unlimited
	}
	if lift[&limits.memory] || lift[&limits.memorySwap] {
		r.MemorySwapLimitInBytes = unlimited
	}
	if cmd.Flags().Changed("cpus") && limits.cpus == 0 {
		r.CpuQuota = unlimited
	}
	if proto.Equal(r, &runtimeapi.LinuxContainerResources{}) {
		return nil, errors.New("want at least one limit")
	}
	return r, nil
}

func (a *app) update(ctx context.Context, n *node, words []string, r *runtimeapi.LinuxContainerResources) error {
	c, err := n.inventory(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	var errs []error
	for _, word := range words {
		container, err := c.findContainer(word)
		if err == nil {
			err = n.update(ctx, container, r)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err := fmt.Fprintln(a.Out, word); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

func (n *node) update(ctx context.Context, c *runtimeapi.Container, r *runtimeapi.LinuxContainerResources) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if _, err := n.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.Id, Linux: r}); err != nil {
		return fmt.Errorf("update container %s: %w", c.Metadata.GetName(), err)
	}
	return nil
}
