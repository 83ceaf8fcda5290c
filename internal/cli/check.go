package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/berth-runtime/berth/internal/cli/hostcheck"
	"github.com/berth-runtime/berth/internal/config"
)

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check whether this host can run pods, with fixes for what is missing",
		Long: `Check whether this host can run pods, with fixes for what is missing.

Features are tried, not derived from versions: the check mounts file systems, creates network links and runs a container
with each runtime handler, and removes all of it.

The exit code is 1 if pods cannot run.`,
		Args: takes(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(a.configFile, cmd.Flags().Changed("config"))
			if err != nil {
				return a.configError(err)
			}
			return a.check(cmd.Context(), c)
		},
	}
}

func (a *app) check(ctx context.Context, c *config.Config) error {
	facts := hostcheck.Run(ctx, c)
	failed := 0
	for _, f := range facts {
		if f.Level == hostcheck.Fail {
			failed++
		}
	}
	if a.format != formatTable {
		if err := a.structured(facts); err != nil {
			return err
		}
	} else if err := a.showFacts(facts); err != nil {
		return err
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case failed == 1:
		return fmt.Errorf("pods cannot run on this host: 1 check failed")
	case failed > 1:
		return fmt.Errorf("pods cannot run on this host: %d checks failed", failed)
	}
	return nil
}

// showFacts prints what was found, and below it what to do: what matters is
// then the last on the screen.
func (a *app) showFacts(facts []hostcheck.Fact) error {
	t := &table{head: []string{"", "AREA", "CHECK", "FOUND"}}
	for _, f := range facts {
		t.add(string(f.Level), f.Area, f.Name, f.Found)
	}
	if err := t.write(a.Out); err != nil {
		return err
	}
	for _, level := range []hostcheck.Level{hostcheck.Warn, hostcheck.Fail} {
		some := slices.DeleteFunc(slices.Clone(facts), func(f hostcheck.Fact) bool { return f.Level != level || f.Remedy == "" })
		for i, f := range some {
			if i == 0 {
				title := map[hostcheck.Level]string{hostcheck.Warn: "Could be better:", hostcheck.Fail: "Keeps pods from running:"}[level]
				if _, err := fmt.Fprintf(a.Out, "\n%s\n", title); err != nil {
					return err
				}
			}
			if _, err := fmt.Fprintf(a.Out, "  %s %s: %s\n", f.Area, f.Name, f.Remedy); err != nil {
				return err
			}
		}
	}
	return nil
}
