package spec

import (
	"slices"
	"strings"

	kernelcap "github.com/containerd/containerd/v2/pkg/cap"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// allCapabilities stands for every capability in a request.
const allCapabilities = "ALL"

// defaultCapabilities are what a container has that asks for nothing, the
// same as with every other runtime.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP",
	"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// capabilityName returns the full name of a capability, with or without its
// prefix in any case, and false if there is none of that name.
func capabilityName(name string) (string, bool) {
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "CAP_") {
		name = "CAP_" + name
	}
	return name, slices.Contains(kernelcap.Known(), name)
}

func isAll(name string) bool { return strings.EqualFold(name, allCapabilities) }

func validateCapabilities(field string, request *runtimeapi.Capability) error {
	for _, list := range []struct {
		name  string
		names []string
	}{
		{"add_capabilities", request.GetAddCapabilities()},
		{"drop_capabilities", request.GetDropCapabilities()},
		{"add_ambient_capabilities", request.GetAddAmbientCapabilities()},
	} {
		for _, name := range list.names {
			if _, ok := capabilityName(name); !ok && !isAll(name) {
				return invalid(field+"."+list.name, name, "is not a capability")
			}
		}
	}
	return nil
}

// capabilities computes the sets of the first process. Nothing can be given
// that the daemon does not have itself: "all" means all of those, while a
// capability that is asked for by name and missing is an error.
//
// The inheritable set stays empty but for ambient capabilities, so that a
// program with file capabilities cannot gain by it (CVE-2022-24769).
func capabilities(in Input) (*specs.LinuxCapabilities, error) {
	sc, host := in.Config.GetLinux().GetSecurityContext(), in.Host
	if sc.GetPrivileged() {
		all := sorted(host.Capabilities)
		return &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}, nil
	}
	request := sc.GetCapabilities()
	set := map[string]bool{}
	ambient := map[string]bool{}
	base, asked := baseCapabilities(in)
	if !slices.ContainsFunc(request.GetDropCapabilities(), isAll) {
		for _, name := range base {
			set[name] = slices.Contains(host.Capabilities, name)
		}
	}
	add := func(field string, names []string, sets ...map[string]bool) error {
		for _, text := range names {
			if isAll(text) {
				continue
			}
			name, _ := capabilityName(text)
			if !slices.Contains(host.Capabilities, name) {
				return unavailable("linux.security_context.capabilities."+field, text,
					"the daemon itself does not have it here")
			}
			for _, s := range sets {
				s[name] = true
			}
		}
		return nil
	}
	if err := add("add_capabilities", request.GetAddCapabilities(), set); err != nil {
		return nil, err
	}
	if err := add("add_ambient_capabilities", request.GetAddAmbientCapabilities(), set, ambient); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(request.GetAddAmbientCapabilities(), isAll) {
		for _, name := range host.Capabilities {
			set[name], ambient[name] = true, true
		}
	}
	for _, text := range request.GetDropCapabilities() {
		name, _ := capabilityName(text)
		delete(set, name)
		delete(ambient, name)
	}
	if !asked {
		in.apply("capabilities", strings.Join(slices.DeleteFunc(slices.Clone(base), func(name string) bool { return !set[name] }), " "))
	}
	all := members(set)
	return &specs.LinuxCapabilities{
		Bounding: all, Effective: all, Permitted: all,
		Inheritable: members(ambient), Ambient: members(ambient),
	}, nil
}

// baseCapabilities are those that a request adds to and drops from, and whether it has asked for them.
func baseCapabilities(in Input) (names []string, asked bool) {
	if slices.ContainsFunc(in.Config.GetLinux().GetSecurityContext().GetCapabilities().GetAddCapabilities(), isAll) {
		return in.Host.Capabilities, true
	}
	if in.Defaults.capabilities == nil {
		return defaultCapabilities, false
	}
	return in.Defaults.capabilities, false
}

// members lists the names that are true, in order; nil if there is none.
func members(set map[string]bool) []string {
	var names []string
	for name, in := range set {
		if in {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return names
}
