package spec

import (
	"reflect"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func values(texts ...string) []*runtimeapi.KeyValue {
	var list []*runtimeapi.KeyValue
	for i := 0; i < len(texts); i += 2 {
		list = append(list, &runtimeapi.KeyValue{Key: texts[i], Value: []byte(texts[i+1])})
	}
	return list
}

// TestCanonical: odd forms that containerd and CRI-O accept become what these give for them, with a warning where a part is
// ignored. The result is in canonical form.
func TestCanonical(t *testing.T) {
	type mount = runtimeapi.Mount
	ids := []*runtimeapi.IDMapping{{Length: 1}}
	image := &runtimeapi.ImageSpec{Image: "x"}
	const bidirectional = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	for name, c := range map[string]struct {
		change change
		result func(in *Input) any
		want   any
		warned string // field
	}{
		"absolute log path":    {func(in *Input) { in.Config.LogPath = "//a/b.log" }, func(in *Input) any { return in.Config.LogPath }, "a/b.log", ""},
		"detour of a log":      {func(in *Input) { in.Config.LogPath = "a/../b.log" }, func(in *Input) any { return in.Config.LogPath }, "b.log", ""},
		"log outside":          {func(in *Input) { in.Config.LogPath = "a/../../b" }, func(in *Input) any { return in.Config.LogPath }, "a/../../b", ""},
		"no log directory":     {func(in *Input) { in.Pod.LogDirectory = "" }, func(in *Input) any { return in.Config.LogPath }, "", "log_path"},
		"variable with a '='":  {func(in *Input) { in.Config.Envs = values("A=B", "C") }, func(in *Input) any { return in.Config.Envs[0].Key + "," + string(in.Config.Envs[0].Value) }, "A,B=C", ""},
		"variable of bytes":    {func(in *Input) { in.Config.Envs = values("A", "a\xff\xfeb") }, func(in *Input) any { return string(in.Config.Envs[0].Value) }, "a\uFFFD\uFFFDb", "envs[0].value"},
		"relative target":      {withMount(&mount{ContainerPath: "a/../b", HostPath: "/"}), func(in *Input) any { return in.Config.Mounts[0].ContainerPath }, "/b", ""},
		"sub path of no image": {withMount(&mount{HostPath: "/", ImageSubPath: "x"}), func(in *Input) any { return in.Config.Mounts[0].ImageSubPath }, "", "mounts[0].image_sub_path"},
		"image that shares":    {withMount(&mount{Image: image, Propagation: bidirectional}), func(in *Input) any { return int(in.Config.Mounts[0].Propagation) }, 0, "mounts[0].propagation"},
		"idmapped that shares": {withMount(&mount{HostPath: "/", UidMappings: ids, Propagation: bidirectional}), func(in *Input) any { return int(in.Config.Mounts[0].Propagation) }, 0, "mounts[0].propagation"},
		"device without a path": {func(in *Input) { in.Config.Devices = []*runtimeapi.Device{{HostPath: "dev/null"}} },
			func(in *Input) any { return in.Config.Devices[0].HostPath + "," + in.Config.Devices[0].ContainerPath }, "/dev/null,/dev/null", ""},
		"user twice": {func(in *Input) { sc(in).RunAsUser, sc(in).RunAsUsername = &runtimeapi.Int64Value{Value: 9}, "app" },
			func(in *Input) any { return sc(in).RunAsUser == nil }, true, "linux.security_context.run_as_user"},
		"odd masked paths": {func(in *Input) { sc(in).MaskedPaths = []string{"", "proc/keys"} },
			func(in *Input) any { return sc(in).MaskedPaths }, []string{"/proc/keys"}, "linux.security_context.masked_paths"},
		"network of the node in a pod of its own": {func(in *Input) { sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{Network: modeNode} },
			func(in *Input) any { return sc(in).NamespaceOptions.Network == modePod }, true, "linux.security_context.namespace_options.network"},
	} {
		in := testInput(t)
		in.Config.LogPath = "c.log"
		in.Pod.LogDirectory = "/logs"
		c.change(&in)
		before := proto.CloneOf(in.Config)
		given := in.Config
		config, warnings := Canonical(given, in.Pod)
		if !proto.Equal(given, before) {
			t.Errorf("%s: the request was changed", name)
		}
		in.Config = config
		if got := c.result(&in); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %#v, want %#v", name, got, c.want)
		}
		if fields := len(warnings); fields > 1 || (c.warned == "") != (fields == 0) || fields == 1 && warnings[0].Field != c.warned {
			t.Errorf("%s: warnings %v, want one about %q", name, warnings, c.warned)
		}
		if again, more := Canonical(config, in.Pod); !proto.Equal(again, config) || len(more) > 0 {
			t.Errorf("%s: a second pass gives %v and %v", name, again, more)
		}
	}
}

// TestCanonicalSandbox does the same for pods.
func TestCanonicalSandbox(t *testing.T) {
	pod := testInput(t).Pod
	pod.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"", "1.1.1.1"}, Options: []string{"ndots:5 timeout:1"}}
	pod.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: modeContainer, Pid: modeTarget}
	pod.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80}, {HostPort: -1, ContainerPort: 81}, {HostPort: 82, ContainerPort: 82}, {ContainerPort: 70000}}
	pod.Linux.Sysctls = map[string]string{"kernel.domainname": "example.com"}
	result, warnings := CanonicalSandbox(pod)
	if err := ValidateSandbox(result); err != nil {
		t.Fatal(err)
	}
	options := result.Linux.SecurityContext.NamespaceOptions
	if options.Network != modePod || options.Pid != modePod || !slices.Equal(result.DnsConfig.Servers, []string{"1.1.1.1"}) {
		t.Errorf("got %v", result)
	}
	if p := result.PortMappings; len(p) != 2 || p[0].ContainerPort != 80 || p[1].ContainerPort != 82 {
		t.Errorf("ports are %v", p)
	}
	var fields []string
	for _, w := range warnings {
		fields = append(fields, w.Field)
	}
	want := []string{"dns_config.servers", "port_mappings[1]", "port_mappings[3]", "linux.security_context.namespace_options.network", "linux.security_context.namespace_options.pid"}
	if !slices.Equal(fields, want) {
		t.Errorf("warnings about %q, want %q", fields, want)
	}
}
