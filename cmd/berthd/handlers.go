package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/berth-runtime/berth/internal/apparmor"
	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
	"github.com/berth-runtime/berth/internal/ociruntime/probecontainer"
	"github.com/berth-runtime/berth/internal/selinux"
	"github.com/berth-runtime/berth/internal/spec"
)

// loadProfile loads the default AppArmor profile where the kernel has AppArmor, and
// says if SELinux cannot label containers.
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
	if selinux.Unlabelled() {
		d.log.Warn("the SELinux policy of this host has no labels for containers: they run without")
	}
}

// openHandlers begins to try every configured runtime on this host. One that
// does not work is kept with its problem: pods that ask for it and people who
// look at the status get to know it. Trials of a daemon that was killed are undone
// before.
func (d *daemon) openHandlers(ctx context.Context, host spec.Host) error {
	probes := filepath.Join(d.cfg.State, "trials")
	if err := probecontainer.Sweep(ctx, probes); err != nil {
		d.log.Warn("files of a handler probe could not be removed; the next start tries again", "error", err)
	}
	var configured []handlers.Info
	for name, settings := range d.cfg.Runtime.Handlers {
		info := handlers.Info{
			Handler: handlerOf(d.cfg, name, settings), Annotations: settings.Annotations,
			NoHostDevices: settings.PrivilegedWithoutHostDevices, AllDevices: settings.PrivilegedWithoutHostDevicesAllDevicesAllowed,
			CgroupWritable: settings.CgroupWritable,
		}
		if info.CgroupWritable && host.Cgroup != cgroup.V2 {
			return config.At(d.file, "is true; it needs cgroup v2, which this host does not have", "runtime", "handlers", name, "cgroup_writable")
		}
		if settings.SandboxContainer == config.SandboxContainerAlways || settings.SandboxContainer == config.SandboxContainerNever {
			always := settings.SandboxContainer == config.SandboxContainerAlways
			info.Sandbox = &always
		}
		configured = append(configured, info)
	}
	d.handlers = handlers.Open(configured, handlers.Options{Default: d.cfg.Runtime.DefaultHandler, Trials: probes, Log: d.log})
	d.onClose("end the probes of runtime handlers", func(context.Context) error {
		d.handlers.Close()
		return nil
	})
	// What a runtime can do, the kernel has to be able to do as well.
	d.handlers.Restrict(func(f *ociruntime.Features) { f.RecursiveReadOnly = f.RecursiveReadOnly && host.RecursiveReadOnly })
	return nil
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
	d.handlers.Restrict(func(f *ociruntime.Features) { f.UserNamespaces, f.UserNamespacesProblem = false, problem.Error() })
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
