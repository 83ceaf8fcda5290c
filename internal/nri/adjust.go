package nri

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxMounts bounds the mounts that plugins change in one container.
const maxMounts = 1000

// InjectCDI adds devices of the Container Device Interface to a spec.
type InjectCDI func(s *specs.Spec, devices []string) error

// Adjust changes a spec as plugins want. Limits are left to the caller: they
// are linux.resources of the adjustment. What cannot be had is an error that
// names the field, the value and the reason.
func Adjust(s *specs.Spec, a *api.ContainerAdjustment, inject InjectCDI) error {
	if s.Process == nil {
		s.Process = &specs.Process{}
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if len(a.GetArgs()) > 0 {
		s.Process.Args = a.GetArgs()
	}
	s.Annotations = adjustMap(s.Annotations, a.GetAnnotations())
	s.Process.Env = adjustEnv(s.Process.Env, a.GetEnv())
	adjustHooks(s, a.GetHooks())
	adjustRlimits(s.Process, a.GetRlimits())
	if err := adjustMounts(s, a.GetMounts()); err != nil {
		return err
	}
	var devices []string
	for _, d := range a.GetCDIDevices() {
		devices = append(devices, d.GetName())
	}
	if len(devices) > 0 {
		if err := inject(s, devices); err != nil {
			return fmt.Errorf("CDI_devices %q: %w", devices, err)
		}
	}
	return adjustLinux(s, a.GetLinux())
}

// adjustMap sets the keys of changes, or removes those that are marked for it.
func adjustMap[V any](values, changes map[string]V) map[string]V {
	if values == nil && len(changes) > 0 {
		values = map[string]V{}
	}
	for key := range changes {
		if gone, marked := api.IsMarkedForRemoval(key); marked {
			delete(values, gone)
		}
	}
	for key, value := range changes {
		if _, marked := api.IsMarkedForRemoval(key); !marked {
			values[key] = value
		}
	}
	return values
}

// adjustEnv keeps the order of what there is and appends what is new.
func adjustEnv(env []string, changes []*api.KeyValue) []string {
	if len(changes) == 0 {
		return env
	}
	index := make(map[string]int, len(env)) // of a variable that there is
	for at, have := range slices.Backward(env) {
		index[nameOf(have)] = at
	}
	removed := map[int]bool{}
	for _, c := range changes {
		name, gone := c.IsMarkedForRemoval()
		at, found := index[name]
		switch {
		case gone && found:
			removed[at] = true
			delete(index, name)
		case gone:
		case found:
			env[at] = c.ToOCI()
		default:
			index[name] = len(env)
			env = append(env, c.ToOCI())
		}
	}
	var left []string
	for at, have := range env {
		if !removed[at] {
			left = append(left, have)
		}
	}
	return left
}

// nameOf is the name of a variable "NAME=value".
func nameOf(variable string) string {
	name, _, _ := strings.Cut(variable, "=")
	return name
}

func adjustHooks(s *specs.Spec, h *api.Hooks) {
	if h = h.Hooks(); h == nil {
		return
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	for _, list := range []struct {
		to   *[]specs.Hook
		from []*api.Hook
	}{
		{&s.Hooks.Prestart, h.GetPrestart()}, //nolint:staticcheck // plugins may still use it
		{&s.Hooks.CreateRuntime, h.GetCreateRuntime()},
		{&s.Hooks.CreateContainer, h.GetCreateContainer()},
		{&s.Hooks.StartContainer, h.GetStartContainer()},
		{&s.Hooks.Poststart, h.GetPoststart()},
		{&s.Hooks.Poststop, h.GetPoststop()},
	} {
		for _, hook := range list.from {
			*list.to = append(*list.to, hook.ToOCI())
		}
	}
}

// adjustRlimits replaces limits of the same type: the OCI spec allows one.
func adjustRlimits(p *specs.Process, limits []*api.POSIXRlimit) {
	for _, l := range limits {
		p.Rlimits = slices.DeleteFunc(p.Rlimits, func(have specs.POSIXRlimit) bool { return have.Type == l.GetType() })
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: l.GetType(), Hard: l.GetHard(), Soft: l.GetSoft()})
	}
}

// adjustMounts replaces mounts by their destination. Those that plugins add
// come after what they are mounted on.
func adjustMounts(s *specs.Spec, changes []*api.Mount) error {
	if len(changes) > maxMounts {
		return fmt.Errorf("mounts with %d entries: has more than %d: %w", len(changes), maxMounts, errdefs.ErrInvalidArgument)
	}
	for _, change := range changes {
		target, gone := change.IsMarkedForRemoval()
		s.Mounts = slices.DeleteFunc(s.Mounts, func(have specs.Mount) bool { return path.Clean(have.Destination) == path.Clean(target) })
		if gone {
			continue
		}
		if !path.IsAbs(target) {
			return fmt.Errorf("mounts %q: destination must be an absolute path: %w", target, errdefs.ErrInvalidArgument)
		}
		var propagation string
		mount := change.ToOCI(&propagation)
		if err := checkBind(mount); err != nil {
			return err
		}
		switch {
		case propagation == "rshared", propagation == "rslave" && s.Linux.RootfsPropagation != "rshared":
			s.Linux.RootfsPropagation = propagation
		}
		s.Mounts = append(s.Mounts, mount)
	}
	if len(changes) > 0 {
		slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int {
			return strings.Count(path.Clean(a.Destination), "/") - strings.Count(path.Clean(b.Destination), "/")
		})
	}
	return nil
}

// checkBind refuses to bind what does not exist: the container could not start.
func checkBind(mount specs.Mount) error {
	bind := mount.Type == "bind" || slices.Contains(mount.Options, "bind") || slices.Contains(mount.Options, "rbind")
	if !bind {
		return nil
	}
	if _, err := os.Stat(mount.Source); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mounts %q: source %q does not exist: %w", mount.Destination, mount.Source, errdefs.ErrInvalidArgument)
	} else if err != nil {
		return fmt.Errorf("mounts %q: look at its source: %w", mount.Destination, err)
	}
	return nil
}

// markRemoved adds to an adjustment which variables and devices of a spec
// plugins have removed. The library loses that, but shows it to each plugin in
// what the ones before have left.
func markRemoved(a *api.ContainerAdjustment, s *specs.Spec, left *api.Container) {
	if s.Process != nil {
		kept := map[string]bool{}
		for _, variable := range left.GetEnv() {
			kept[nameOf(variable)] = true
		}
		for _, have := range s.Process.Env {
			if name := nameOf(have); !kept[name] {
				a.RemoveEnv(name)
			}
		}
	}
	if s.Linux != nil {
		kept := map[string]bool{}
		for _, d := range left.GetLinux().GetDevices() {
			kept[d.GetPath()] = true
		}
		for _, have := range s.Linux.Devices {
			if !kept[have.Path] {
				a.RemoveDevice(have.Path)
			}
		}
	}
}
