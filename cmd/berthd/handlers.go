package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/berth-runtime/berth/internal/apparmor"
	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/pod"
	"github.com/berth-runtime/berth/internal/spec"
)

// loadProfile loads the default AppArmor profile where the kernel has AppArmor.
// Without it containers whose request asks for the default are not confined by it,
// which is worth a warning and no reason not to run them.
func (d *daemon) loadProfile(ctx context.Context) {
	enabled, err := apparmor.Enabled()
	if err == nil && enabled {
		err = apparmor.Load(ctx)
	}
	if err != nil {
		d.log.Warn("there is no default AppArmor profile for containers", "error", err)
	}
}

// preferred are the handlers that become the default if they work, in order.
var preferred = []string{"crun", "runc"}

// probeHandlers tries every configured OCI runtime on this host, all at once.
// One that does not work is kept with its problem: pods that ask for it and
// people who look at the status get to know it.
func probeHandlers(ctx context.Context, cfg *config.Config, host spec.Host, log *slog.Logger) map[string]pod.HandlerInfo {
	var mu sync.Mutex
	var probing sync.WaitGroup
	probed := make(map[string]pod.HandlerInfo, len(cfg.Runtime.Handlers))
	for name, settings := range cfg.Runtime.Handlers {
		probing.Go(func() {
			info := pod.HandlerInfo{Handler: handlerOf(cfg, name, settings)}
			var err error
			if info.Features, err = ociruntime.Probe(ctx, info.Handler); ctx.Err() != nil {
				return // the daemon does not start, for another reason
			}
			if err != nil {
				info.Problem = err.Error()
				log.Warn("a runtime handler does not work on this host", "handler", name, "problem", err)
			} else {
				log.Info("runtime handler", "handler", name, "version", info.Features.Version, "spec", info.Features.OCIVersion)
			}
			// What a runtime can do, the kernel has to be able to do as well.
			info.Features.RecursiveReadOnly = info.Features.RecursiveReadOnly && host.RecursiveReadOnly
			mu.Lock()
			defer mu.Unlock()
			probed[name] = info
		})
	}
	probing.Wait()
	return probed
}

// checkUserNamespaces finds out whether pods can have user namespaces where the
// images are. Then it is up to their handler.
func (d *daemon) checkUserNamespaces(host *spec.Host) {
	problem := d.images.TryMapping()
	if problem == nil {
		problem = openToAll(d.cfg.State)
	}
	if problem == nil {
		return
	}
	host.NoUserNamespaces = problem.Error()
	d.log.Warn("pods cannot have user namespaces on this host", "problem", problem)
	for name, info := range d.handlers {
		info.Features.UserNamespaces, info.Features.UserNamespacesProblem = false, problem.Error()
		d.handlers[name] = info
	}
}

// openToAll is nil if every user can get to a directory. Root of a user
// namespace is any user to the host, and its containers' roots are in there.
func openToAll(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("look for the way of user namespaces: %w", err)
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("directory %s with mode %#o is closed to other users: chmod o+x", dir, info.Mode().Perm())
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func handlerOf(cfg *config.Config, name string, settings config.Handler) ociruntime.Handler {
	root := settings.Root
	if root == "" {
		root = filepath.Join(cfg.State, "runtime", name)
	}
	return ociruntime.Handler{
		Name: name, Type: settings.Type, Path: settings.Path, Root: root,
		SystemdCgroup: cgroup.ChooseDriver(cfg.Runtime.CgroupDriver) == cgroup.Systemd, Options: maps.Clone(settings.Options),
	}
}

// defaultHandler is the configured one, or else the first of preferred that
// works, or else any that does. With none the first of preferred stands for
// the problem to show.
func defaultHandler(configured string, probed map[string]pod.HandlerInfo) string {
	if configured != "" {
		return configured
	}
	for _, name := range append(slices.Clone(preferred), slices.Sorted(maps.Keys(probed))...) {
		if info, ok := probed[name]; ok && info.Problem == "" {
			return name
		}
	}
	return preferred[0]
}
