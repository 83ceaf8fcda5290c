package checkpoint

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-runtime/berth/internal/text"
)

// hostnameEnv names the pod, which may be another one.
const hostnameEnv = "HOSTNAME="

// Match compares a checkpoint with the spec that a request makes. Its
// processes go on as they were, so what is theirs must be the same; what is set
// around them may differ. The error names the first thing that differs and is of
// kind ErrInvalidArgument.
func (a *Archive) Match(spec *specs.Spec) error {
	old := &a.Spec
	if old.Process == nil || old.Linux == nil || old.Root == nil || spec.Process == nil || spec.Linux == nil || spec.Root == nil {
		return fmt.Errorf("the checkpoint has no spec of a Linux container: %w", errdefs.ErrInvalidArgument)
	}
	for _, field := range []struct {
		name     string
		was, now any
	}{
		{"tty", old.Process.Terminal, spec.Process.Terminal},
		{"command and args", old.Process.Args, spec.Process.Args},
		{"working_dir", old.Process.Cwd, spec.Process.Cwd},
		{"envs", environment(old), environment(spec)},
		{"the user", identity(old), identity(spec)},
		{"linux.security_context.capabilities", old.Process.Capabilities, spec.Process.Capabilities},
		{"linux.security_context.no_new_privs", old.Process.NoNewPrivileges, spec.Process.NoNewPrivileges},
		{"linux.security_context.apparmor", old.Process.ApparmorProfile, spec.Process.ApparmorProfile},
		{"linux.security_context.seccomp", old.Linux.Seccomp, spec.Linux.Seccomp},
		{"linux.security_context.readonly_rootfs", old.Root.Readonly, spec.Root.Readonly},
		{"linux.security_context.masked_paths", sorted(old.Linux.MaskedPaths), sorted(spec.Linux.MaskedPaths)},
		{"linux.security_context.readonly_paths", sorted(old.Linux.ReadonlyPaths), sorted(spec.Linux.ReadonlyPaths)},
		{"linux.security_context.namespace_options", namespaces(old), namespaces(spec)},
		{"mounts", binds(old), binds(spec)},
	} {
		was, err := json.Marshal(field.was)
		if err != nil {
			return err
		}
		now, err := json.Marshal(field.now)
		if err != nil {
			return err
		}
		if string(was) != string(now) {
			return fmt.Errorf("%s: the checkpoint has %s, the request gives %s: %w", field.name, short(was), short(now), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// environment is what was asked for, in any order.
func environment(spec *specs.Spec) []string {
	return sorted(slices.DeleteFunc(slices.Clone(spec.Process.Env), func(entry string) bool { return strings.HasPrefix(entry, hostnameEnv) }))
}

// identity is who the process is.
func identity(spec *specs.Spec) []uint32 {
	groups := slices.Clone(spec.Process.User.AdditionalGids)
	slices.Sort(groups)
	return append([]uint32{spec.Process.User.UID, spec.Process.User.GID}, groups...)
}

// namespaces are those that the container has, and whether it shares them.
func namespaces(spec *specs.Spec) []string {
	var list []string
	for _, n := range spec.Linux.Namespaces {
		text := string(n.Type)
		if n.Path != "" {
			text += " of the pod"
		}
		list = append(list, text)
	}
	return sorted(list)
}

// binds are the places where something of the host is mounted.
func binds(spec *specs.Spec) []string {
	var list []string
	for _, mount := range spec.Mounts {
		if mount.Type == "bind" {
			list = append(list, path.Clean(mount.Destination))
		}
	}
	return sorted(list)
}

func sorted(list []string) []string {
	list = append([]string{}, list...)
	slices.Sort(list)
	return list
}

// short bounds what an error quotes.
func short(value []byte) string {
	const most = 256
	return text.Cut(string(value), most)
}
