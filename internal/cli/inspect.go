package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// inspection is everything that is known about one object. The names are
// stable; status is the CRI's own message with readable times, info what the
// runtime adds.
type inspection struct {
	Kind   string         `json:"kind"`
	Status any            `json:"status"`
	Info   map[string]any `json:"info"`
}

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect POD|CONTAINER|IMAGE…",
		Short: "Show details of pods, containers or images",
		Long: `Show details of pods, containers or images as JSON, or as YAML with -o yaml.

One object is printed as a document, several as a list.`,
		Args: takes(cobra.MinimumNArgs(1), "the names or IDs of pods, containers or images"),
		RunE: func(cmd *cobra.Command, words []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, n *node) error { return a.inspect(ctx, n, words) })
		},
	}
}

func (a *app) inspect(ctx context.Context, n *node, words []string) error {
	c, err := n.inventory(ctx)
	if err != nil {
		return fmt.Errorf("list pods and containers: %w", err)
	}
	var errs []error
	found := []*inspection{}
	for _, word := range words {
		i, err := n.inspect(ctx, c, word)
		if err != nil {
			errs = append(errs, fmt.Errorf("inspect %s: %w", word, err))
			continue
		}
		found = append(found, i)
	}
	var out any = found
	switch {
	case len(found) == 0:
		return errors.Join(errs...)
	case len(words) == 1:
		out = found[0]
	}
	return errors.Join(append(errs, a.structured(out))...)
}

// inspect looks among pods and containers first: their names are fewer.
func (n *node) inspect(ctx context.Context, c *inventory, word string) (*inspection, error) {
	t, err := c.find(word)
	if err == nil {
		return n.inspectTarget(ctx, t)
	}
	if len(c.matches(word)) > 0 {
		return nil, err
	}
	image, imageErr := n.findImage(ctx, word)
	if imageErr != nil {
		return nil, imageErr
	}
	if image == nil {
		return nil, &hintedError{
			err:  fmt.Errorf("no pod, container or image %q", word),
			next: "See what there is with: berth pods -a; berth ps -a; berth images",
		}
	}
	return n.inspectTarget(ctx, target{image: image})
}

func (n *node) inspectTarget(ctx context.Context, t target) (*inspection, error) {
	ctx, cancel := n.ask(ctx)
	defer cancel()
	switch {
	case t.container != nil:
		resp, err := n.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: t.container.Id, Verbose: true})
		if err != nil {
			return nil, err
		}
		return newInspection(t, resp.Status, resp.Info)
	case t.pod != nil:
		resp, err := n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: t.pod.Id, Verbose: true})
		if err != nil {
			return nil, err
		}
		return newInspection(t, resp.Status, resp.Info)
	}
	resp, err := n.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{
		Image: &runtimeapi.ImageSpec{Image: t.image.Id}, Verbose: true,
	})
	if err != nil {
		return nil, err
	}
	return newInspection(t, resp.Image, resp.Info)
}

// newInspection turns the answer of a runtime into a document. What a runtime
// adds is JSON in strings, which is unfolded.
func newInspection(t target, message proto.Message, info map[string]string) (*inspection, error) {
	text, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("write the status as JSON: %w", err)
	}
	var parsed any
	if err := json.Unmarshal(text, &parsed); err != nil {
		return nil, fmt.Errorf("write the status as JSON: %w", err)
	}
	readableTimes(parsed)
	out := &inspection{Kind: t.kind(), Status: parsed, Info: map[string]any{}}
	for key, value := range info {
		var unfolded any
		if json.Unmarshal([]byte(value), &unfolded) != nil {
			unfolded = value // plain words
		}
		if all, ok := unfolded.(map[string]any); ok && key == "info" {
			maps.Copy(out.Info, all) // the one key that runtimes put everything under
			continue
		}
		out.Info[key] = unfolded
	}
	return out, nil
}

// readableTimes turns the nanoseconds of the CRI into times, and those of what
// has not happened into null.
func readableTimes(status any) {
	fields, ok := status.(map[string]any)
	if !ok {
		return
	}
	for _, key := range []string{"createdAt", "startedAt", "finishedAt"} {
		text, ok := fields[key].(string)
		if !ok {
			continue
		}
		if ns, err := strconv.ParseInt(text, 10, 64); err == nil {
			fields[key] = moment(ns)
		}
	}
}
