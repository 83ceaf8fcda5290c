package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/warning"
)

// Canonical returns the request for a container with its odd forms replaced by what containerd and CRI-O give for
// them, and warnings about what is ignored. Validate takes the result: what is still odd is refused. A request in
// canonical form stays as it is.
func Canonical(config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) (*runtimeapi.ContainerConfig, warning.List) {
	var warnings warning.List
	if config == nil {
		return nil, nil
	}
	config = proto.CloneOf(config)
	canonicalLog(config, pod, &warnings)
	for i, env := range config.GetEnvs() {
		canonicalEnv(fmt.Sprintf("envs[%d]", i), env, &warnings)
	}
	for i, mount := range config.GetMounts() {
		canonicalMount(fmt.Sprintf("mounts[%d]", i), mount, &warnings)
	}
	for _, device := range config.GetDevices() {
		if device.GetHostPath() != "" {
			device.HostPath = absolute(device.GetHostPath())
			device.ContainerPath = absolute(choose(device.GetContainerPath(), device.GetHostPath()))
		}
	}
	if sc := config.GetLinux().GetSecurityContext(); sc != nil {
		canonicalSecurity(sc, pod, &warnings)
	}
	return config, warnings
}

// CanonicalSandbox is Canonical for a pod.
func CanonicalSandbox(pod *runtimeapi.PodSandboxConfig) (*runtimeapi.PodSandboxConfig, warning.List) {
	var warnings warning.List
	if pod == nil {
		return nil, nil
	}
	pod = proto.CloneOf(pod)
	if dns := pod.GetDnsConfig(); dns != nil {
		dns.Servers = nonEmpty("dns_config.servers", dns.GetServers(), &warnings)
		dns.Searches = nonEmpty("dns_config.searches", dns.GetSearches(), &warnings)
		dns.Options = nonEmpty("dns_config.options", dns.GetOptions(), &warnings)
	}
	canonicalPorts(pod, &warnings)
	if options := pod.GetLinux().GetSecurityContext().GetNamespaceOptions(); options != nil {
		const field, reason = "linux.security_context.namespace_options.", "is taken as POD: a pod has one namespace for all its containers"
		for _, ns := range []struct {
			name string
			mode *runtimeapi.NamespaceMode
		}{{"network", &options.Network}, {"ipc", &options.Ipc}} {
			if *ns.mode == modeContainer || *ns.mode == modeTarget {
				warnings.Add(field+ns.name, ns.mode.String(), reason)
				*ns.mode = modePod
			}
		}
		if options.Pid == modeTarget {
			warnings.Add(field+"pid", options.Pid.String(), "is taken as POD: a pod has no target")
			options.Pid = modePod
		}
	}
	return pod, warnings
}

// absolute returns a path as OCI runtimes take it: from the root, without detours.
func absolute(p string) string {
	if path.IsAbs(p) && !hasDotDot(p) {
		return p
	}
	return path.Clean("/" + p)
}

// canonicalLog takes the log path from the log directory. Without the directory there is no log.
func canonicalLog(config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig, warnings *warning.List) {
	file := config.GetLogPath()
	switch {
	case file == "":
	case pod != nil && pod.GetLogDirectory() == "":
		warnings.Add("log_path", file, "is ignored, output is not logged: log_directory in the config of the sandbox is empty")
		config.LogPath = ""
	case path.IsAbs(file) || hasDotDot(file):
		if clean := path.Clean(strings.TrimLeft(file, "/")); clean != "." && !hasDotDot(clean) {
			config.LogPath = clean
		}
	}
}

// canonicalEnv splits a variable at its first '=', and replaces what is not UTF-8 as JSON does on its way to the OCI
// runtime. The value may be a secret and is in no warning.
func canonicalEnv(field string, env *runtimeapi.KeyValue, warnings *warning.List) {
	if key, more, ok := strings.Cut(env.GetKey(), "="); ok && key != "" {
		env.Key, env.Value = key, []byte(more+"="+string(env.GetValue()))
	}
	if !utf8.Valid(env.GetValue()) {
		env.Value = []byte(string([]rune(string(env.GetValue()))))
		warnings.Add(field+".value", "of "+env.GetKey(), "is not UTF-8: the wrong bytes were replaced by U+FFFD")
	}
}

func canonicalMount(field string, mount *runtimeapi.Mount, warnings *warning.List) {
	if mount.GetContainerPath() != "" {
		mount.ContainerPath = absolute(mount.GetContainerPath())
	}
	if mount.GetImage() == nil && mount.GetImageSubPath() != "" {
		warnings.Add(field+".image_sub_path", mount.GetImageSubPath(), "is ignored: the mount is of no image")
		mount.ImageSubPath = ""
	}
	if mount.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		return
	}
	var reason string
	switch {
	case mount.GetImage() != nil:
		reason = "is taken as private: an image has no other mounts"
	case len(mount.GetUidMappings()) > 0:
		reason = "is taken as private: the host does not see mounts in an idmapped copy"
	default:
		return
	}
	warnings.Add(field+".propagation", mount.GetPropagation().String(), reason)
	mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_PRIVATE
}

func canonicalSecurity(sc *runtimeapi.LinuxContainerSecurityContext, pod *runtimeapi.PodSandboxConfig, warnings *warning.List) {
	const field = "linux.security_context."
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		warnings.Add(field+"run_as_user", sc.GetRunAsUser().GetValue(), "is ignored: run_as_username wins")
		sc.RunAsUser = nil
	}
	sc.MaskedPaths = absolutes(field+"masked_paths", sc.GetMaskedPaths(), warnings)
	sc.ReadonlyPaths = absolutes(field+"readonly_paths", sc.GetReadonlyPaths(), warnings)
	own, shared := sc.GetNamespaceOptions(), pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if own == nil {
		return
	}
	for _, ns := range []struct {
		name string
		own  *runtimeapi.NamespaceMode
		pod  runtimeapi.NamespaceMode
	}{{"network", &own.Network, shared.GetNetwork()}, {"ipc", &own.Ipc, shared.GetIpc()}} {
		// The other way round it would get more than it asks for.
		if *ns.own == modeNode && ns.pod != modeNode {
			warnings.Add(field+"namespace_options."+ns.name, ns.own.String(), "is ignored: the container has the namespace of its pod")
			*ns.own = modePod
		}
	}
}

func absolutes(field string, paths []string, warnings *warning.List) []string {
	paths = nonEmpty(field, paths, warnings)
	for i, p := range paths {
		paths[i] = absolute(p)
	}
	return paths
}

// nonEmpty removes empty entries.
func nonEmpty(field string, values []string, warnings *warning.List) []string {
	if slices.Contains(values, "") {
		warnings.Add(field, "", "an empty entry is ignored")
		values = slices.DeleteFunc(values, func(value string) bool { return value == "" })
	}
	return values
}

// canonicalPorts removes mappings without a port of the host that are odd in another way: they ask for nothing.
func canonicalPorts(pod *runtimeapi.PodSandboxConfig, warnings *warning.List) {
	index := -1
	pod.PortMappings = slices.DeleteFunc(pod.GetPortMappings(), func(port *runtimeapi.PortMapping) bool {
		index++
		field := fmt.Sprintf("port_mappings[%d]", index)
		if port.GetHostPort() > 0 || validatePort(field, port) == nil {
			return false
		}
		warnings.Add(field, port.GetContainerPort(), "is ignored: it names no port of the host")
		return true
	})
}
