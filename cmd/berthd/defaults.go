package main

import (
	"errors"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/hook"
	"github.com/berth-runtime/berth/internal/spec"
)

// readDefaults reads what the table [pod] names, and names file and key of what this host cannot give.
func (d *daemon) readDefaults(host *spec.Host) (*spec.Defaults, error) {
	defaults, warnings, err := spec.ReadDefaults(d.cfg.Pod, host)
	if bad, ok := errors.AsType[*spec.SettingError](err); ok {
		return nil, config.At(d.file, bad.Problem, "pod", bad.Key)
	}
	if err != nil {
		return nil, err
	}
	if dirs := d.cfg.Pod.HooksDir; len(dirs) > 0 {
		if defaults.Hooks, err = hook.Open(dirs); err != nil {
			return nil, config.At(d.file, err.Error(), "pod", "hooks_dir")
		}
	}
	for _, w := range warnings {
		d.log.Warn("default for pods restricted", "key", w.Field, "value", w.Value, "reason", w.Reason)
	}
	return defaults, nil
}
