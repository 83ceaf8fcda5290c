package cli

import (
	"context"

	"github.com/spf13/cobra"
)

// completion returns what an argument may be, each with a word about it behind
// a tab.
type completion func(context.Context, *node) ([]string, error)

// completer asks the runtime what the shell may offer. Without a runtime there
// is nothing to offer, and a shell is no place for an error.
func (a *app) completer(complete completion) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		var words []string
		err := a.with(cmd.Context(), func(ctx context.Context, n *node) (err error) {
			words, err = complete(ctx, n)
			return err
		})
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
			return nil, cobra.ShellCompDirectiveError
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeObjects offers pods and containers.
func completeObjects(ctx context.Context, n *node) ([]string, error) {
	c, err := n.inventory(ctx)
	if err != nil {
		return nil, err
	}
	var words []string
	for _, p := range c.pods {
		words = append(words, p.Metadata.GetName()+"\tpod in "+p.Metadata.GetNamespace()+", "+podState(p.State))
	}
	for _, ctr := range c.containers {
		pod := c.podOf(ctr).GetMetadata().GetName()
		words = append(words, pod+"/"+ctr.Metadata.GetName()+"\tcontainer, "+containerState(ctr.State))
	}
	return words, nil
}

// completePods offers pods.
func completePods(ctx context.Context, n *node) ([]string, error) {
	pods, err := n.pods(ctx)
	if err != nil {
		return nil, err
	}
	var words []string
	for _, p := range pods {
		words = append(words, p.Metadata.GetName()+"\tpod in "+p.Metadata.GetNamespace()+", "+podState(p.State))
	}
	return words, nil
}

// completeImages offers the names of images.
func completeImages(ctx context.Context, n *node) ([]string, error) {
	images, err := n.listImages(ctx)
	if err != nil {
		return nil, err
	}
	var words []string
	for _, i := range images {
		for _, tag := range i.RepoTags {
			words = append(words, tag+"\t"+size(i.Size))
		}
	}
	return words, nil
}
