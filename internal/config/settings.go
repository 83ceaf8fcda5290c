package config

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// setting is one key: what it means, where its value lives, and what it may be.
// Decoding, validation, the documented default and the reference in docs/ all
// read this table, so that a key cannot exist in one of them only.
type setting struct {
	// key is the name within its table.
	key string
	// doc is shown above the key in the documented default.
	doc string
	// example is a valid value in TOML, quoted in errors about a wrong type.
	example string
	// value points to the field: *string, *int, *bool, *[]string or *map[string]string.
	value any
	// single allows a list to be written as one string.
	single bool
	// check returns what is wrong with the present value, or "".
	check func() string
}

// section is a TOML table with its settings.
type section struct {
	// name is the dotted name of the table; empty for the top level.
	name string
	// doc is shown above the table.
	doc string
	// settings are the keys in the order in which they are documented.
	settings []setting
}

// maxGroupName is the longest name of a group that Linux tools accept, with room.
const maxGroupName = 255

const handlersTable = "runtime.handlers"

// sections returns every table of c except those of the handlers.
func sections(c *Config) []section {
	return []section{
		topSection(c), logSection(&c.Log), imageSection(&c.Image),
		networkSection(&c.Network), runtimeSection(c), podSection(&c.Pod), cdiSection(&c.CDI), streamSection(&c.Stream), metricsSection(&c.Metrics),
		nriSection(&c.NRI),
	}
}

func topSection(c *Config) section {
	return section{settings: []setting{
		{key: "root", value: &c.Root, example: `"/var/lib/berth"`,
			doc:   "Directory of what survives a reboot: images and the records of pods.",
			check: func() string { return checkRoot(c.Root) }},
		{key: "state", value: &c.State, example: `"/run/berth"`,
			doc:   "Directory of what lives as long as the machine is up: sockets, namespaces, mounts. Best on a tmpfs.",
			check: func() string { return checkState(c.State, c.Root) }},
		{key: "listen", value: &c.Listen, example: `"unix:///run/berth/berth.sock"`,
			doc:   "Socket that kubelet, crictl and berth connect to.",
			check: func() string { return checkListen(c.Listen) }},
		{key: "listen_group", value: &c.ListenGroup, example: `"berth"`,
			doc: "Group whose members may connect beside root, by name or number; the socket then has mode 0660, else 0600. Clients\n" +
				"can run privileged containers: the members of the group are root on this node.",
			check: func() string { return checkGroup(c.ListenGroup) }},
	}}
}

func logSection(l *Log) section {
	return section{name: "log", doc: "What the daemon writes to its standard error, and what containers may write to their logs.", settings: []setting{
		{key: "level", value: &l.Level, example: `"info"`,
			doc:   "The least important messages to write: debug, info, warn or error.",
			check: func() string { return checkOneOf(l.Level, "debug", "info", "warn", "error") }},
		{key: "format", value: &l.Format, example: `"text"`,
			doc:   "How a message is written: text or json.",
			check: func() string { return checkOneOf(l.Format, "text", "json") }},
		{key: "container_bytes_per_second", value: &l.ContainerBytesPerSecond, example: "10485760",
			doc: "How many bytes per second of log file one container may write, time stamps included. A container that writes more is " +
				"slowed: its output waits in the pipe. 0 is no limit; containers then share the writing by turns. It holds for containers " +
				"that are started later.",
			check: func() string { return checkLogLimit(l.ContainerBytesPerSecond) }},
	}}
}

func networkSection(n *Network) section {
	return section{name: "network", doc: "How pods get their network.", settings: []setting{
		{key: "cni_conf_dir", value: &n.CNIConfDir, example: `"/etc/cni/net.d"`,
			doc:   "Directory with CNI configurations; the first one by name is used. It is watched and may be absent.",
			check: func() string { return checkDir(n.CNIConfDir) }},
		{key: "cni_bin_dirs", value: &n.CNIBinDirs, example: `["/opt/cni/bin"]`,
			doc:   "Directories that are searched for CNI plugins, in this order.",
			check: func() string { return checkDirs(n.CNIBinDirs) }},
		{key: "builtin", value: &n.Builtin, example: `"auto"`,
			doc: "When to use the built-in bridge network: auto (while cni_conf_dir holds no configuration, and never for the\n" +
				"pods of a kubelet, which wait for one), always, or never (pods wait for a CNI configuration).",
			check: func() string { return checkOneOf(n.Builtin, BuiltinAuto, BuiltinAlways, BuiltinNever) }},
		{key: "builtin_subnet", value: &n.BuiltinSubnet, example: `["10.85.0.0/16", "fd62:e7c4:1a85::/64"]`, single: true,
			doc: "Addresses of the built-in network: an IPv4 subnet, an IPv6 subnet, or one of each; or pod-cidr, the range that kubelet\n" +
				"announces for the node: until then the node's network is not ready, and another range is refused while pods have\n" +
				"addresses of the former one. For the pods of a kubelet it needs builtin = \"always\". Empty means 10.85.0.0/16\n" +
				"and fd62:e7c4:1a85::/64 with the default root, and with any other root subnets that are free on this host.",
			check: func() string { return checkSubnets(n.BuiltinSubnet) }},
		{key: "host_ports", value: &n.HostPorts, example: `"auto"`,
			doc: "Who opens the host ports of pods in a CNI network: auto (a plugin with the capability portMappings, or\n" +
				"Cilium, else Berth) or never (the network, or none). The built-in network always opens them.",
			check: func() string { return checkOneOf(n.HostPorts, HostPortsAuto, HostPortsNever) }},
		{key: "netns_dir", value: &n.NetNSDir, example: `"/run/netns"`,
			doc: "Directory in which the network namespace of each pod is pinned as cni-ID, where CNI plugins and ip netns look\n" +
				"for it. Pods keep the place that they were made with.",
			check: func() string { return checkDir(n.NetNSDir) }},
	}}
}

func runtimeSection(c *Config) section {
	r := &c.Runtime
	return section{name: "runtime", doc: "Which OCI runtimes there are.", settings: []setting{
		{key: "default_handler", value: &r.DefaultHandler, example: `"crun"`,
			doc: "Handler of pods that ask for none. Empty means crun where it works on this host, else runc, else any that\n" +
				"works; `berth check` says which.",
			check: func() string { return checkDefaultHandler(r) }},
		{key: "cgroup_driver", value: &r.CgroupDriver, example: `"systemd"`,
			doc: "Cgroup driver: systemd, cgroupfs or auto (systemd where it runs, else cgroupfs); must match kubelet, which\n" +
				"asks for it by itself unless its configuration names one.",
			check: func() string {
				return checkOneOf(r.CgroupDriver, CgroupDriverAuto, CgroupDriverSystemd, CgroupDriverCgroupfs)
			}},
	}}
}

// handlerSection is the table of one handler.
func handlerSection(name string, h *Handler) section {
	return section{name: handlersTable + "." + quoteKey(name), settings: []setting{
		{key: "type", value: &h.Type, example: `"oci"`,
			doc: "How the runtime is driven. \"oci\" is a program with the command line of runc: crun, runc, runsc. \"shim-v2\" is a\n" +
				"containerd shim, which stays as a process for each pod: containerd-shim-runc-v2, Kata's, gVisor's.",
			check: func() string { return checkOneOf(h.Type, HandlerOCI, HandlerShimV2) }},
		{key: "path", value: &h.Path, example: `"/usr/bin/crun"`,
			doc: "The program: an absolute path, or a name that is looked up in PATH. A shim may also be named as containerd\n" +
				"names it: io.containerd.runc.v2 is containerd-shim-runc-v2.",
			check: func() string { return checkProgram(h.Path) }},
		{key: "root", value: &h.Root, example: `"/run/crun"`,
			doc:   "Directory in which the runtime keeps its own state. Empty means runtime/NAME under state.",
			check: func() string { return checkOptionalDir(h.Root) }},
		{key: "options", value: &h.Options, example: `{ debug = "true" }`,
			doc: "Global flags of an OCI runtime: debug = \"true\" is given as --debug=true. A shim takes others: binary_name (the\n" +
				"OCI runtime of io.containerd.runc.v2), shim_cgroup, or config_path and type_url (Kata's, gVisor's).",
			check: func() string { return checkOptions(h.Type, h.Options) }},
		{key: "annotations", value: &h.Annotations, example: `["io.katacontainers.*"]`,
			doc: "Patterns of the annotations of pods and containers that are passed on to the runtime; * stands for anything\n" +
				"but a slash. Some runtimes do as annotations say, so none is passed unless it is listed here.",
			check: func() string { return checkEach(h.Annotations, checkPattern) }},
		{key: "privileged_without_host_devices", value: &h.PrivilegedWithoutHostDevices, example: "false",
			doc: "Whether privileged containers get only the devices that their request lists, and may use no others: for sandboxed\n" +
				"runtimes, such as Kata.",
			check: fine},
		{key: "privileged_without_host_devices_all_devices_allowed", value: &h.PrivilegedWithoutHostDevicesAllDevicesAllowed, example: "false",
			doc:   "Whether they may use all devices nevertheless. It needs privileged_without_host_devices.",
			check: func() string { return checkAllDevices(h) }},
		{key: "cgroup_writable", value: &h.CgroupWritable, example: "false",
			doc: "Whether containers that are not privileged may change their own cgroup and make others below it: /sys/fs/cgroup is\n" +
				"writable, in a cgroup namespace. It needs cgroup v2.",
			check: fine},
		{key: "sandbox_container", value: &h.SandboxContainer, example: `"always"`,
			doc: "Whether a container stands for each pod, in whose sandbox (virtual machine, gVisor kernel) the others run: auto\n" +
				"(for runsc, and the shims of gVisor and Kata), always (for another shim that wants it), or never.",
			check: func() string {
				return checkOneOf(cmp.Or(h.SandboxContainer, SandboxContainerAuto), SandboxContainerAuto, SandboxContainerAlways, SandboxContainerNever)
			}},
	}}
}

// checkGroup refuses what is neither a name nor the number of a group.
func checkGroup(group string) string {
	if strings.ContainsAny(group, ":/ \x00\n") || len(group) > maxGroupName {
		return fmt.Sprintf("%.100q is no group; want a name or a number", group)
	}
	return ""
}

// checkAllDevices returns what is wrong with a handler's rules for devices.
func checkAllDevices(h *Handler) string {
	if h.PrivilegedWithoutHostDevicesAllDevicesAllowed && !h.PrivilegedWithoutHostDevices {
		return "is true, but privileged_without_host_devices is not; want both, or false"
	}
	return ""
}

func cdiSection(d *CDI) section {
	return section{name: "cdi", doc: "Devices that containers ask for by name: the Container Device Interface.", settings: []setting{
		{key: "spec_dirs", value: &d.SpecDirs, example: `["/etc/cdi", "/var/run/cdi"]`,
			doc: "Directories whose files describe devices; the later ones have precedence. They may be absent. An empty list\n" +
				"refuses all such devices.",
			check: func() string { return checkEach(d.SpecDirs, checkDir) }},
	}}
}

func streamSection(s *Stream) section {
	return section{name: "stream", doc: "Where exec, attach and port-forward are served; kubelet and berth follow by themselves.", settings: []setting{
		{key: "address", value: &s.Address, example: `"127.0.0.1"`,
			doc: "IP address to listen on. A session is protected by nothing but its one-time URL, so leave it on\n" +
				"loopback, unless tls_client_ca_file says who may connect.",
			check: func() string { return checkAddress(s.Address) }},
		{key: "port", value: &s.Port, example: "0",
			doc:   "TCP port; 0 takes a free one.",
			check: func() string { return checkRange(s.Port, 0, maxPort) }},
		{key: "idle_timeout", value: &s.IdleTimeout, example: `"4h"`,
			doc:   "Time after which a session ends on which no data moves, such as \"30m\"; at least a second.",
			check: func() string { return checkDuration(s.IdleTimeout, time.Second) }},
		{key: "tls", value: &s.TLS, example: "true",
			doc: "Whether sessions are encrypted. Kubelet then checks the certificate against the authorities of this host\n" +
				"(/etc/ssl/certs, or SSL_CERT_FILE in its environment); crictl checks it if --tls-ca is given; berth finds it by\n" +
				"itself.",
			check: func() string { return "" }},
		{key: "tls_cert_file", value: &s.TLSCertFile, example: `"/etc/berth/stream.crt"`,
			doc: "Certificate for tls, in PEM, with its chain. A file that is replaced is used from the next session on. Empty\n" +
				"means a self-signed one, stream/tls.crt under root, which is renewed before it expires.",
			check: func() string { return checkTLSFile(s, s.TLSCertFile, s.TLSKeyFile, "tls_key_file") }},
		{key: "tls_key_file", value: &s.TLSKeyFile, example: `"/etc/berth/stream.key"`,
			doc:   "Key of tls_cert_file, in PEM.",
			check: func() string { return checkTLSFile(s, s.TLSKeyFile, s.TLSCertFile, "tls_cert_file") }},
		{key: "tls_client_ca_file", value: &s.TLSClientCAFile, example: `"/etc/berth/clients.crt"`,
			doc: "Authorities, in PEM. A client then needs a certificate of one of them; kubelet has none to show, so this is\n" +
				"for hosts where something else connects. Empty asks for none.",
			check: func() string { return checkTLSFile(s, s.TLSClientCAFile, "", "") }},
	}}
}

func metricsSection(m *Metrics) section {
	return section{name: "metrics", doc: "Where Prometheus metrics are served.", settings: []setting{
		{key: "address", value: &m.Address, example: `"127.0.0.1:9620"`,
			doc:   "Address and port, such as \"127.0.0.1:9620\", for GET /metrics. Empty serves none.",
			check: func() string { return checkHostPort(m.Address) }},
	}}
}
