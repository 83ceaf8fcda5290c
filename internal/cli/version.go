package cli

import (
	"context"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/version"
)

// versions are who talks to whom. The names are stable.
type versions struct {
	Client     string `json:"client"`
	Runtime    string `json:"runtime"`
	RuntimeAPI string `json:"runtimeApi"`
	Server     string `json:"server"`
	Endpoint   string `json:"endpoint"`
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of berth and of the runtime",
		Args:  takes(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: version.Version}
			err := a.with(cmd.Context(), func(ctx context.Context, n *node) error {
				ctx, cancel := n.ask(ctx)
				defer cancel()
				resp, err := n.Version(ctx, &runtimeapi.VersionRequest{})
				if err != nil {
					return err
				}
				v.Runtime, v.Server = resp.RuntimeName, resp.RuntimeVersion
				v.RuntimeAPI, v.Endpoint = resp.RuntimeApiVersion, n.endpoint
				return nil
			})
			// What this program is can be said even without an answer.
			if showErr := a.showVersions(v); showErr != nil {
				return showErr
			}
			return err
		},
	}
}

func (a *app) showVersions(v versions) error {
	return a.show(v, func() *table {
		t := &table{}
		t.add("Client:", "berth "+v.Client)
		if v.Runtime != "" {
			t.add("Runtime:", v.Runtime+" "+v.Server)
			t.add("Runtime API:", v.RuntimeAPI)
			t.add("Endpoint:", v.Endpoint)
		}
		return t
	})
}
