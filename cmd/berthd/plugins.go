package main

import (
	"context"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/nri"
	"github.com/berth-runtime/berth/internal/version"
)

// openPlugins makes the manager of plugins, which the engine starts once it can
// tell them of what there is.
func (d *daemon) openPlugins() {
	c := d.cfg.NRI
	if !c.Enabled {
		return
	}
	opts := nri.Options{
		Version: version.Version, Socket: d.cfg.NRISocket(), PluginDir: c.PluginDir, ConfigDir: c.PluginConfigDir,
		Meter: d.metrics.Plugins(), Log: d.log.With("part", "nri"),
	}
	opts.RegistrationTimeout, opts.RequestTimeout = c.Timeouts()
	if c.DefaultValidator {
		opts.Validator = &nri.Validator{
			Enable:                                true,
			RejectOCIHookAdjustment:               c.Rejects(config.RejectOCIHooks),
			RejectRuntimeDefaultSeccompAdjustment: c.Rejects(config.RejectRuntimeDefaultSeccomp),
			RejectUnconfinedSeccompAdjustment:     c.Rejects(config.RejectUnconfinedSeccomp),
			RejectCustomSeccompAdjustment:         c.Rejects(config.RejectCustomSeccomp),
			RejectNamespaceAdjustment:             c.Rejects(config.RejectNamespaces),
			RejectSysctlAdjustment:                c.Rejects(config.RejectSysctls),
			RequiredPlugins:                       c.RequiredPlugins,
			TolerateMissingAnnotation:             c.TolerateAnnotation,
		}
	}
	d.plugins = nri.New(opts)
	d.onClose("end the plugins", func(context.Context) error {
		d.plugins.Close()
		return nil
	})
}
