package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// DefaultNRISocket is where plugins of the Node Resource Interface expect the
// runtime of a node.
const DefaultNRISocket = "/var/run/nri/nri.sock"

const (
	// nriSocketName is the socket of a daemon with another root, under its state.
	nriSocketName = "nri.sock"
	// longestPluginTimeout bounds the timeouts of plugins: pods wait for them.
	longestPluginTimeout = time.Minute
)

// NRI is how plugins take part in the life of pods.
type NRI struct {
	Enabled             bool     `json:"enabled"              toml:"enabled"`
	SocketPath          string   `json:"socket_path"          toml:"socket_path"`
	DisableConnections  bool     `json:"disable_connections"  toml:"disable_connections"`
	PluginDir           string   `json:"plugin_dir"           toml:"plugin_dir"`
	PluginConfigDir     string   `json:"plugin_config_dir"    toml:"plugin_config_dir"`
	RegistrationTimeout string   `json:"registration_timeout" toml:"registration_timeout"`
	RequestTimeout      string   `json:"request_timeout"      toml:"request_timeout"`
	DefaultValidator    bool     `json:"default_validator"    toml:"default_validator"`
	Reject              []string `json:"reject"               toml:"reject"`
	RequiredPlugins     []string `json:"required_plugins"     toml:"required_plugins"`
	TolerateAnnotation  string   `json:"tolerate_annotation"  toml:"tolerate_annotation"`
}

// The values of NRI.Reject.
const (
	RejectOCIHooks              = "oci_hooks"
	RejectRuntimeDefaultSeccomp = "runtime_default_seccomp"
	RejectUnconfinedSeccomp     = "unconfined_seccomp"
	RejectCustomSeccomp         = "custom_seccomp"
	RejectNamespaces            = "namespaces"
	RejectSysctls               = "sysctls"
)

var rejectable = []string{
	RejectOCIHooks, RejectRuntimeDefaultSeccomp, RejectUnconfinedSeccomp, RejectCustomSeccomp, RejectNamespaces, RejectSysctls,
}

func defaultNRI() NRI {
	return NRI{
		Enabled: true, PluginDir: "/opt/nri/plugins", PluginConfigDir: "/etc/nri/conf.d",
		RegistrationTimeout: "5s", RequestTimeout: "5s", Reject: []string{}, RequiredPlugins: []string{},
	}
}

// NRISocket is the socket that plugins connect to, "" if they may not. Only one
// runtime of a node can have the one that plugins expect.
func (c *Config) NRISocket() string {
	switch {
	case !c.NRI.Enabled || c.NRI.DisableConnections:
		return ""
	case c.NRI.SocketPath != "":
		return c.NRI.SocketPath
	case filepath.Clean(c.Root) == DefaultRoot:
		return DefaultNRISocket
	}
	return filepath.Join(c.State, nriSocketName)
}

// Timeouts are RegistrationTimeout and RequestTimeout of a valid configuration.
func (n NRI) Timeouts() (registration, request time.Duration) {
	return duration(n.RegistrationTimeout), duration(n.RequestTimeout)
}

// Rejects reports whether adjustments of a kind are rejected.
func (n NRI) Rejects(kind string) bool { return slices.Contains(n.Reject, kind) }

func duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0 // Validate has refused it
	}
	return d
}

func nriSection(n *NRI) section {
	return section{name: "nri", doc: "How plugins of the Node Resource Interface take part in the life of pods.", settings: []setting{
		{key: "enabled", value: &n.Enabled, example: "true",
			doc: "Whether plugins receive the events of pods and containers, and may change them.", check: fine},
		{key: "socket_path", value: &n.SocketPath, example: `"/var/run/nri/nri.sock"`,
			doc: "Socket that plugins connect to. Empty means /var/run/nri/nri.sock with the default root, and with any other\n" +
				"root nri.sock under state. If it cannot be had, because another runtime serves it, pods run without plugins,\n" +
				"and the log, `berth check` and the verbose status say so; to refuse such containers, set required_plugins.",
			check: func() string { return checkSocket(n.SocketPath) }},
		{key: "disable_connections", value: &n.DisableConnections, example: "false",
			doc: "Whether only plugins from plugin_dir take part: no socket is made.", check: fine},
		{key: "plugin_dir", value: &n.PluginDir, example: `"/opt/nri/plugins"`,
			doc:   "Directory of programs, named NN-NAME, that the daemon starts as plugins. It may be absent.",
			check: func() string { return checkDir(n.PluginDir) }},
		{key: "plugin_config_dir", value: &n.PluginConfigDir, example: `"/etc/nri/conf.d"`,
			doc:   "Directory of what they are configured with: NN-NAME.conf or NAME.conf. It may be absent.",
			check: func() string { return checkDir(n.PluginConfigDir) }},
		{key: "registration_timeout", value: &n.RegistrationTimeout, example: `"5s"`,
			doc:   "How long a plugin may take to register, at most 1m.",
			check: func() string { return checkTimeout(n.RegistrationTimeout) }},
		{key: "request_timeout", value: &n.RequestTimeout, example: `"5s"`,
			doc: "How long a plugin may take to answer one request, at most 1m. One that takes longer is disconnected, and the\n" +
				"request goes on without it unless it has asked for another policy.",
			check: func() string { return checkTimeout(n.RequestTimeout) }},
		{key: "default_validator", value: &n.DefaultValidator, example: "true",
			doc: "Whether the built-in validator looks at what plugins want to adjust. Without further keys it requires the\n" +
				"plugins that a pod names in its annotation required-plugins.noderesource.dev.",
			check: func() string { return checkValidator(n) }},
		{key: "reject", value: &n.Reject, example: `["oci_hooks"]`,
			doc: "Adjustments that the validator rejects: oci_hooks, runtime_default_seccomp, unconfined_seccomp,\n" +
				"custom_seccomp, namespaces, sysctls.",
			check: func() string {
				return checkEach(n.Reject, func(kind string) string { return checkOneOf(kind, rejectable...) })
			}},
		{key: "required_plugins", value: &n.RequiredPlugins, example: `["limits"]`,
			doc:   "Plugins without which the validator lets no container be made.",
			check: func() string { return checkEach(n.RequiredPlugins, checkPluginName) }},
		{key: "tolerate_annotation", value: &n.TolerateAnnotation, example: `"tolerate-missing-plugins.example"`,
			doc: "Annotation by which a pod does without required plugins, as static pods have to. Empty means that none can.", check: fine},
	}}
}

// fine is the check of a setting whose every value is possible.
func fine() string { return "" }

func checkSocket(path string) string {
	switch {
	case path == "":
		return ""
	case len(path) > maxSocketPath:
		return fmt.Sprintf("is %d bytes long; a unix socket has at most %d", len(path), maxSocketPath)
	case strings.HasSuffix(path, "/"):
		return fmt.Sprintf("%q names no file; want such as %q", path, DefaultNRISocket)
	}
	return checkDir(path)
}

func checkTimeout(text string) string {
	d, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Sprintf("%q is no length of time; want such as \"5s\" or \"500ms\"", text)
	}
	if d <= 0 || d > longestPluginTimeout {
		return fmt.Sprintf("%q is out of range; want more than nothing and at most 1m", text)
	}
	return ""
}

func checkValidator(n *NRI) string {
	if n.DefaultValidator || len(n.Reject) == 0 && len(n.RequiredPlugins) == 0 {
		return ""
	}
	return "is false, but reject and required_plugins are for the validator; want true, or those two empty"
}

func checkPluginName(name string) string {
	if name == "" || strings.ContainsAny(name, "/ ") {
		return fmt.Sprintf("%q is no name of a plugin; want it without its number, such as limits", name)
	}
	return ""
}
