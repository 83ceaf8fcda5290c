package config

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestLoadAbsentFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none.toml")
	got, err := Load(file, false)
	if err != nil {
		t.Fatalf("Load of an optional absent file: %v", err)
	}
	if want := Default(); !reflect.DeepEqual(got, want) {
		t.Errorf("Load of an absent file = %+v, want the default", got)
	}
	if _, err := Load(file, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of a required absent file = %v, want fs.ErrNotExist", err)
	}
	if _, err := Load(t.TempDir(), false); err == nil {
		t.Error("Load of a directory succeeded")
	}
}

func TestLoadTooLarge(t *testing.T) {
	file := filepath.Join(t.TempDir(), "large.toml")
	if err := os.WriteFile(file, bytes.Repeat([]byte("#"), maxFileSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(file, true)
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Load of a huge file = %v, want ErrInvalidArgument", err)
	}
}

func TestParseOverridesDefaults(t *testing.T) {
	got, err := Parse("x.toml", []byte(`
root = "/srv/berth"
network.builtin_subnet = "192.168.4.0/22"
[runtime]
default_handler = "kata"
handlers.crun.path = "/opt/crun"
handlers.crun.annotations = ["run.oci.*"]
[runtime.handlers.kata]
path = "/opt/kata-runtime"
options = { debug = true }
sandbox_container = "always"
[stream]
port = 10010
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Root = "/srv/berth"
	want.Network.BuiltinSubnet = []string{"192.168.4.0/22"}
	want.Runtime.DefaultHandler = "kata"
	want.Runtime.Handlers["crun"] = Handler{Type: HandlerOCI, Path: "/opt/crun", Options: map[string]string{}, Annotations: []string{"run.oci.*"}, SandboxContainer: "auto"}
	want.Runtime.Handlers["kata"] = Handler{
		Type: HandlerOCI, Path: "/opt/kata-runtime", Options: map[string]string{"debug": "true"}, Annotations: []string{}, SandboxContainer: "always",
	}
	want.Stream.Port = 10010
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Parse =\n%+v, want\n%+v", got, want)
	}
}

// Each thing that can be wrong is answered with file, line, key and what would
// be right.
func TestParseRefuses(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"syntax", "\nroot = \n", `f.toml:2: is no valid TOML`},
		{"double_key", "root = \"/a\"\nroot = \"/b\"", `f.toml:2: root: is no valid TOML`},
		{"unknown_key", "\n[log]\nlevle = \"info\"", `f.toml:3: log.levle: is no key in [log]; did you mean level?`},
		{"unknown_far", "[log]\ncolour = true", `f.toml:2: log.colour: is no key in [log]; possible are container_bytes_per_second, format, level`},
		{"unknown_table", "[logs]\nlevel = \"info\"", `f.toml:1: logs: is no key at the top level; did you mean log?`},
		{"wrong_place", "[log]\nbuiltin = \"auto\"", `f.toml:2: log.builtin: is no key in [log]; it belongs in [network]`},
		{"below_table", "[log]\nlevel=\"info\"\nlisten = \"unix:///x\"", `f.toml:3: log.listen: is no key in [log]; it belongs above the first [table]`},
		{"table_type", "log = \"info\"", `f.toml:1: log: is a string; want a table, written as [log]`},
		{"string_type", "root = 7", `f.toml:1: root: is a whole number; want a string, such as "/var/lib/berth"`},
		{"int_type", "[stream]\nport = \"80\"", `f.toml:2: stream.port: is a string; want a whole number, such as 0`},
		{"fraction", "[stream]\nport = 1.5", `f.toml:2: stream.port: is a fraction; want a whole number`},
		{"list_type", "image.pinned = \"a\"", `f.toml:1: image.pinned: is a string; want an array of strings, such as ["registry.example/tools:1"]`},
		{"list_element", "image.pinned = [\n\"a\", 3]", `f.toml:1: image.pinned: is an array with something else than strings`},
		{"date", "root = 2026-01-01", `f.toml:1: root: is a date or time; want a string`},
		{"relative", "root = \"var\"", `f.toml:1: root: "var" is relative; want an absolute path`},
		{"root_is_slash", "root = \"//\"", `f.toml:1: root: is the root of the file system`},
		{"root_special", "root = \"/a:b\"", `f.toml:1: root: "/a:b" has one of the characters`},
		{"same_dirs", "root = \"/a\"\nstate = \"/a/\"", `f.toml:2: state: "/a/" is root as well`},
		{"long_state", "state = \"/" + strings.Repeat("s", 100) + "\"", `want at most 92`},
		{"listen_scheme", "listen = \"tcp://1.2.3.4:5\"", `f.toml:1: listen: "tcp://1.2.3.4:5" is no unix socket; want unix:// and`},
		{"listen_dir", "listen = \"unix:///run/\"", `names no file`},
		{"listen_long", "listen = \"unix:///" + strings.Repeat("s", 107) + "\"", `has a path of 108 bytes`},
		{"level", "log.level = \"loud\"", `f.toml:1: log.level: "loud" is not known; use debug, info, warn or error`},
		{"format", "log = { format = \"xml\" }", `f.toml:1: log.format: "xml" is not known; use text or json`},
		{"downloads", "image.max_concurrent_downloads = 0", `f.toml:1: image.max_concurrent_downloads: 0 is out of range; want 1 to 64`},
		{"pinned", "image.pinned = [\"ok\", \"Not OK\"]", `f.toml:1: image.pinned: element 2: "Not OK" is no image reference`},
		{"bin_dirs", "network.cni_bin_dirs = []", `f.toml:1: network.cni_bin_dirs: is an empty list`},
		{"bin_dir", "network.cni_bin_dirs = [\"x\"]", `element 1: "x" is relative`},
		{"builtin", "network.builtin = \"yes\"", `"yes" is not known; use auto, always or never`},
		{"subnet", "network.builtin_subnet = \"10.1\"", `"10.1" is no subnet; want such as`},
		{"subnet_bits", "network.builtin_subnet = \"10.1.2.3/16\"", `"10.1.2.3/16" has bits set after its prefix; want 10.1.0.0/16`},
		{"subnet_two", "network.builtin_subnet = [\"10.1.0.0/16\", \"10.2.0.0/16\"]", `are of one family`},
		{"subnet_small", "network.builtin_subnet = \"10.1.0.0/30\"", `is too small for pods; want at most /29`},
		{"subnet_mapped", "network.builtin_subnet = \"::ffff:10.0.0.0/112\"", `is IPv4 written as IPv6`},
		{"subnet_loop", "network.builtin_subnet = \"127.0.0.0/8\"", `cannot be used for pods`},
		{"handler_default", "[runtime]\ndefault_handler = \"kata\"", `f.toml:2: runtime.default_handler: "kata" is no handler; use one of crun, runc, add the table [runtime.handlers.kata]`},
		{"handler_type", "[runtime.handlers.x]\ntype = \"vm\"\npath = \"x\"", `f.toml:2: runtime.handlers.x.type: "vm" is not known; use oci or shim-v2`},
		{"handler_path", "\n[runtime.handlers.x]", `f.toml:2: runtime.handlers.x.path: is empty; want the path`},
		{"handler_rel", "runtime.handlers.x.path = \"./x\"", `f.toml:1: runtime.handlers.x.path: "./x" is relative`},
		{"handler_name", "[runtime.handlers.\"a/b\"]\npath = \"x\"", `f.toml:1: runtime.handlers."a/b": is no name for a handler`},
		{"handler_key", "[runtime.handlers.x]\npath = \"x\"\nargs = []", `f.toml:3: runtime.handlers.x.args: is no key in [runtime.handlers.x]`},
		{"handler_table", "runtime.handlers.x = 1", `f.toml:1: runtime.handlers.x: is a whole number; want a table, written as [runtime.handlers.x]`},
		{"handlers_table", "runtime.handlers = []", `f.toml:1: runtime.handlers: is an array of strings; want a table`},
		{"option", "runtime.handlers.crun.options = { --debug = true }", `f.toml:1: runtime.handlers.crun.options: "--debug" is no flag; want its name without dashes`},
		{"option_own", "runtime.handlers.crun.options = { root = \"/x\" }", `"root" is set by berth itself; leave it out`},
		{"option_cgroups", "runtime.handlers.crun.options = { systemd_cgroup = true }", `"systemd_cgroup" is said once for all handlers; leave it out, and see runtime.cgroup_driver`},
		{"cgroup_driver", "runtime.cgroup_driver = \"v2\"", `runtime.cgroup_driver: "v2"`},
		{"option_of_shim", "[runtime.handlers.x]\ntype = \"shim-v2\"\npath = \"io.containerd.runc.v2\"\noptions = { binary = \"crun\" }", `f.toml:4: runtime.handlers.x.options: "binary" is no option of a shim; possible are binary_name, config_path`},
		{"annotations", "runtime.handlers.crun.annotations = [\"[\"]", `f.toml:1: runtime.handlers.crun.annotations: element 1: "[" is no pattern; want a name with *`},
		{"option_type", "runtime.handlers.crun.options = { debug = 1.5 }", `f.toml:1: runtime.handlers.crun.options: is a table; want a table of strings`},
		{"address", "stream.address = \"localhost\"", `f.toml:1: stream.address: "localhost" is no IP address`},
		{"port", "stream.port = 65536", `65536 is out of range; want 0 to 65535`},
		{"metrics", "metrics.address = \"9620\"", `f.toml:1: metrics.address: "9620" is no address with a port`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("f.toml", []byte(tc.in))
			if err == nil {
				t.Fatalf("accepted:\n%s", tc.in)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is\n\t%v\nwant in it\n\t%s", err, tc.want)
			}
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%v is no ErrInvalidArgument", err)
			}
		})
	}
}

// All problems are reported at once and in the order of the file.
func TestParseTellsEverything(t *testing.T) {
	_, err := Parse("f.toml", []byte("root = 1\nlisten = \"x\"\n[log]\nlevel = \"loud\"\nnope = 1\n"))
	got := Problems(err)
	want := []struct {
		line int
		key  string
	}{{1, "root"}, {2, "listen"}, {4, "log.level"}, {5, "log.nope"}}
	if len(got) != len(want) {
		t.Fatalf("%d problems, want %d:\n%v", len(got), len(want), err)
	}
	for i, w := range want {
		if got[i].Line != w.line || got[i].Key != w.key || got[i].File != "f.toml" {
			t.Errorf("problem %d is %v, want line %d, key %s", i, got[i], w.line, w.key)
		}
	}
}

// A value that came from a flag has no line, but still a key.
func TestValidateWithoutFile(t *testing.T) {
	c := Default()
	c.State = "run"
	err := c.Validate()
	if want := `state: "run" is relative; want an absolute path`; err == nil || err.Error() != want {
		t.Errorf("Validate = %v, want %s", err, want)
	}
}

// Whatever is in a file, it is either refused with an error that names the
// file, or gives a valid configuration that can be written and read back.
func FuzzParse(f *testing.F) {
	f.Add([]byte(Document()))
	f.Add([]byte("root = \"/a\"\n[runtime.handlers.\"a.b\"]\npath='x'\noptions={debug=false}"))
	f.Add([]byte("[[log]]\nlevel = 1\n[[log]]"))
	f.Add([]byte("runtime = { handlers = { x = { path = \"\\u0000\" } } }"))
	f.Add([]byte("log.level.x = 1979-05-27T07:32:00Z"))
	f.Add([]byte("network.builtin_subnet = [[1], {a=1}, \"::/0\"]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f.toml", data)
		if err != nil {
			for _, p := range Problems(err) {
				if p.File != "f.toml" || p.Problem == "" {
					t.Errorf("problem %#v does not say where or what", p)
				}
			}
			if len(Problems(err)) == 0 {
				t.Errorf("error %v holds no problem", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("accepted, but not valid: %v", err)
		}
		back, err := Parse("back.toml", []byte(c.TOML()))
		if err != nil || !reflect.DeepEqual(back, c) {
			t.Errorf("read back (%v)\n%+v, want\n%+v", err, back, c)
		}
	})
}
