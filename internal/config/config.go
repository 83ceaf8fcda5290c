// Package config is the configuration of the daemon: a TOML file with a
// documented default for every key. Whatever is wrong in a file is reported
// with its line, its key and what would be right, all of it at once; nothing
// starts on a configuration that was only partly understood.
package config

import (
	"maps"
	"path/filepath"
	"time"
)

// DefaultFile is where the configuration is read from by default.
const DefaultFile = "/etc/berth/config.toml"

// DefaultRoot is the default of Config.Root. A daemon with this root may use
// host-wide names as they are; any other has to make them its own.
const DefaultRoot = "/var/lib/berth"

// DefaultState is the default of Config.State.
const DefaultState = "/run/berth"

// DefaultListen is the default of Config.Listen, and the endpoint that the
// command line talks to by default.
const DefaultListen = "unix:///run/berth/berth.sock"

// Config is everything that can be configured. The settings table in
// settings.go says what each key means.
type Config struct {
	Root   string `json:"root"    toml:"root"`
	State  string `json:"state"   toml:"state"`
	Listen string `json:"listen"  toml:"listen"`
	// ListenGroup is a name or a number; empty for root alone.
	ListenGroup string  `json:"listen_group" toml:"listen_group"`
	Log         Log     `json:"log"     toml:"log"`
	Image       Image   `json:"image"   toml:"image"`
	Network     Network `json:"network" toml:"network"`
	Runtime     Runtime `json:"runtime" toml:"runtime"`
	Pod         Pod     `json:"pod"     toml:"pod"`
	CDI         CDI     `json:"cdi"     toml:"cdi"`
	Stream      Stream  `json:"stream"  toml:"stream"`
	Metrics     Metrics `json:"metrics" toml:"metrics"`
	NRI         NRI     `json:"nri"     toml:"nri"`
}

// Log is what the daemon writes to its standard error.
type Log struct {
	Level  string `json:"level"  toml:"level"`
	Format string `json:"format" toml:"format"`
	// ContainerBytesPerSecond limits the log of each container; 0 is no limit.
	ContainerBytesPerSecond int `json:"container_bytes_per_second" toml:"container_bytes_per_second"`
}

// Network is how pods get their network.
type Network struct {
	CNIConfDir    string   `json:"cni_conf_dir"   toml:"cni_conf_dir"`
	CNIBinDirs    []string `json:"cni_bin_dirs"   toml:"cni_bin_dirs"`
	Builtin       string   `json:"builtin"        toml:"builtin"`
	BuiltinSubnet []string `json:"builtin_subnet" toml:"builtin_subnet"`
	HostPorts     string   `json:"host_ports"     toml:"host_ports"`
	NetNSDir      string   `json:"netns_dir"      toml:"netns_dir"`
}

// The values of Network.Builtin.
const (
	// BuiltinAuto uses the built-in network while the CNI directory holds no configuration.
	BuiltinAuto = "auto"
	// BuiltinAlways uses the built-in network and ignores the CNI directory.
	BuiltinAlways = "always"
	// BuiltinNever waits for a CNI configuration and reports the network as not ready until there is one.
	BuiltinNever = "never"
)

// SubnetPodCIDR as the only element of Network.BuiltinSubnet is the range that kubelet announces.
const SubnetPodCIDR = "pod-cidr"

// The values of Network.HostPorts.
const (
	// HostPortsAuto opens host ports unless a plugin of the CNI network does.
	HostPortsAuto = "auto"
	// HostPortsNever leaves host ports to the CNI network.
	HostPortsNever = "never"
)

// Runtime is which OCI runtimes there are and which is used by default.
type Runtime struct {
	DefaultHandler string             `json:"default_handler" toml:"default_handler"`
	CgroupDriver   string             `json:"cgroup_driver"   toml:"cgroup_driver"`
	Handlers       map[string]Handler `json:"handlers"        toml:"handlers"`
}

// The values of Runtime.CgroupDriver.
const (
	// CgroupDriverAuto lets systemd make cgroups where it runs.
	CgroupDriverAuto = "auto"
	// CgroupDriverSystemd lets systemd make cgroups.
	CgroupDriverSystemd = "systemd"
	// CgroupDriverCgroupfs makes cgroups without asking anybody.
	CgroupDriverCgroupfs = "cgroupfs"
)

// HandlerOCI is the type of a handler whose program is an OCI runtime such as
// crun or runc.
const HandlerOCI = "oci"

// HandlerShimV2 is the type of a handler whose program is a containerd shim, such as
// containerd-shim-runc-v2 or Kata's.
const HandlerShimV2 = "shim-v2"

// Handler is one OCI runtime as a RuntimeClass or `berth run --runtime` names it.
type Handler struct {
	Type    string            `json:"type"    toml:"type"`
	Path    string            `json:"path"    toml:"path"`
	Root    string            `json:"root"    toml:"root"`
	Options map[string]string `json:"options" toml:"options"`
	// Annotations are patterns of those that pods may pass to the runtime.
	Annotations []string `json:"annotations" toml:"annotations"`
	// PrivilegedWithoutHostDevices and the two below are as containerd has them.
	PrivilegedWithoutHostDevices                  bool `json:"privileged_without_host_devices"                     toml:"privileged_without_host_devices"`
	PrivilegedWithoutHostDevicesAllDevicesAllowed bool `json:"privileged_without_host_devices_all_devices_allowed" toml:"privileged_without_host_devices_all_devices_allowed"`
	CgroupWritable                                bool `json:"cgroup_writable"                                     toml:"cgroup_writable"`
	// SandboxContainer is one of SandboxContainerAuto, …Always, …Never.
	SandboxContainer string `json:"sandbox_container" toml:"sandbox_container"`
}

// When a handler makes a container that stands for the pod.
const (
	SandboxContainerAuto   = "auto"
	SandboxContainerAlways = "always"
	SandboxContainerNever  = "never"
)

// CDI is where devices of the Container Device Interface are described.
type CDI struct {
	SpecDirs []string `json:"spec_dirs" toml:"spec_dirs"`
}

// Stream is where exec, attach and port-forward are served.
type Stream struct {
	Address         string `json:"address"            toml:"address"`
	Port            int    `json:"port"               toml:"port"`
	IdleTimeout     string `json:"idle_timeout"       toml:"idle_timeout"`
	TLS             bool   `json:"tls"                toml:"tls"`
	TLSCertFile     string `json:"tls_cert_file"      toml:"tls_cert_file"`
	TLSKeyFile      string `json:"tls_key_file"       toml:"tls_key_file"`
	TLSClientCAFile string `json:"tls_client_ca_file" toml:"tls_client_ca_file"`
}

// Idle is IdleTimeout as Validate has understood it.
func (s Stream) Idle() time.Duration {
	idle, err := time.ParseDuration(s.IdleTimeout)
	if err != nil {
		return 0 // Validate has refused it
	}
	return idle
}

// TLSFiles are the certificate and key of the stream server; generated tells
// that none are configured and that it makes them itself, beneath root.
func (c *Config) TLSFiles() (cert, key string, generated bool) {
	if c.Stream.TLSCertFile != "" {
		return c.Stream.TLSCertFile, c.Stream.TLSKeyFile, false
	}
	dir := filepath.Join(c.Root, "stream")
	return filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), true
}

// Metrics is where Prometheus metrics are served.
type Metrics struct {
	Address string `json:"address" toml:"address"`
}

// Default returns the configuration of a daemon that was given no file. Each
// call returns a new one which the caller may change.
func Default() *Config {
	return &Config{
		Root:   DefaultRoot,
		State:  DefaultState,
		Listen: DefaultListen,
		Log:    Log{Level: "info", Format: "text"},
		Image:  defaultImage(),
		Network: Network{
			CNIConfDir:    "/etc/cni/net.d",
			CNIBinDirs:    []string{"/opt/cni/bin", "/usr/lib/cni"},
			Builtin:       BuiltinAuto,
			BuiltinSubnet: []string{},
			HostPorts:     HostPortsAuto,
			NetNSDir:      "/run/netns",
		},
		Runtime: Runtime{CgroupDriver: CgroupDriverAuto, Handlers: builtinHandlers()},
		Pod:     defaultPod(),
		NRI:     defaultNRI(),
		CDI:     CDI{SpecDirs: []string{"/etc/cdi", "/var/run/cdi"}},
		Stream:  Stream{Address: "127.0.0.1", IdleTimeout: "4h"},
	}
}

// builtinHandlers are the handlers that exist without being configured.
func builtinHandlers() map[string]Handler {
	return map[string]Handler{
		"crun": {Type: HandlerOCI, Path: "crun", Options: map[string]string{}, Annotations: []string{}, SandboxContainer: SandboxContainerAuto},
		"runc": {Type: HandlerOCI, Path: "runc", Options: map[string]string{}, Annotations: []string{}, SandboxContainer: SandboxContainerAuto},
	}
}

// newHandler is what a handler of that name is before its table is read.
func newHandler(name string) Handler {
	if h, ok := builtinHandlers()[name]; ok {
		return h
	}
	return Handler{Type: HandlerOCI, Options: map[string]string{}, Annotations: []string{}, SandboxContainer: SandboxContainerAuto}
}

// Clone returns a copy that shares nothing with c.
func (c *Config) Clone() *Config {
	out := *c
	out.Image.RegistryConfigDirs = append([]string{}, c.Image.RegistryConfigDirs...)
	out.Image.Pinned = append([]string{}, c.Image.Pinned...)
	out.Network.CNIBinDirs = append([]string{}, c.Network.CNIBinDirs...)
	out.Network.BuiltinSubnet = append([]string{}, c.Network.BuiltinSubnet...)
	out.NRI.Reject = append([]string{}, c.NRI.Reject...)
	out.NRI.RequiredPlugins = append([]string{}, c.NRI.RequiredPlugins...)
	out.Pod = c.Pod.clone()
	out.CDI.SpecDirs = append([]string{}, c.CDI.SpecDirs...)
	out.Runtime.Handlers = make(map[string]Handler, len(c.Runtime.Handlers))
	for name, h := range c.Runtime.Handlers {
		h.Options = maps.Clone(h.Options)
		h.Annotations = append([]string{}, h.Annotations...)
		out.Runtime.Handlers[name] = h
	}
	return &out
}
