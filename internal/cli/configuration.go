package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/berth-runtime/berth/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show, explain and validate the configuration of berthd",
		Args:  noCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "default",
			Short: "Print the default configuration with a description of each key",
			Args:  takes(cobra.NoArgs, "no arguments"),
			RunE: func(*cobra.Command, []string) error {
				if a.format != formatTable {
					return a.structured(config.Default())
				}
				_, err := io.WriteString(a.Out, config.Document())
				return err
			},
		},
		&cobra.Command{
			Use:   "show",
			Short: "Print the configuration that berthd would start with",
			Args:  takes(cobra.NoArgs, "no arguments"),
			RunE:  func(cmd *cobra.Command, _ []string) error { return a.showConfig(cmd.Flags().Changed("config")) },
		},
		&cobra.Command{
			Use:   "validate [FILE]",
			Short: "Report all errors in a configuration file",
			Args:  takes(cobra.MaximumNArgs(1), "at most one file"),
			RunE: func(_ *cobra.Command, files []string) error {
				if len(files) == 1 {
					a.configFile = files[0]
				}
				return a.validateConfig()
			},
		},
	)
	return cmd
}

func (a *app) showConfig(mustExist bool) error {
	c, err := config.Load(a.configFile, mustExist)
	if err != nil {
		return a.configError(err)
	}
	if a.format != formatTable {
		return a.structured(c)
	}
	_, err = io.WriteString(a.Out, c.TOML())
	return err
}

func (a *app) validateConfig() error {
	_, err := config.Load(a.configFile, true)
	if errors.Is(err, fs.ErrNotExist) && a.configFile == config.DefaultFile {
		_, err := fmt.Fprintf(a.Out, "%s does not exist: the defaults apply.\n", a.configFile)
		return err
	}
	if err != nil {
		return a.configError(err)
	}
	_, err = fmt.Fprintf(a.Out, "%s is valid.\n", a.configFile)
	return err
}

// configError lists problems one per line, as compilers do, so that editors
// can jump to them.
func (a *app) configError(err error) error {
	found := config.Problems(err)
	if len(found) == 0 {
		if errors.Is(err, os.ErrNotExist) {
			return &hintedError{err: err, next: "A file to begin with comes from: berth config default"}
		}
		return err
	}
	for _, p := range found {
		fmt.Fprintln(a.Err, p.Error())
	}
	things := "1 thing is"
	if len(found) > 1 {
		things = fmt.Sprintf("%d things are", len(found))
	}
	return &hintedError{
		err:  fmt.Errorf("%s wrong in %s", things, a.configFile),
		next: "Every key is explained by: berth config default",
	}
}
