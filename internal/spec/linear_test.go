package spec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
)

// growth is a list that a request or an image gives, of any length.
type growth struct {
	name string
	// small is a length at which the work can be measured; ten times as much is compared with it.
	small int
	fill  func(in *Input, n int)
}

var growths = []growth{
	{"environment_of_the_image", 4000, func(in *Input, n int) {
		for i := range n {
			in.Image.Env = append(in.Image.Env, fmt.Sprintf("VARIABLE_%d=value", i))
		}
	}},
	{"envs", 4000, func(in *Input, n int) {
		for i := range n {
			in.Config.Envs = append(in.Config.Envs, &runtimeapi.KeyValue{Key: fmt.Sprintf("VARIABLE_%d", i), Value: []byte("value")})
		}
	}},
	{"command", 8000, func(in *Input, n int) {
		in.Config.Command = strings.Split(strings.Repeat("word ", n)+"word", " ")
	}},
	{"mounts", 400, func(in *Input, n int) {
		for i := range n {
			in.Config.Mounts = append(in.Config.Mounts, &runtimeapi.Mount{
				ContainerPath: fmt.Sprintf("/volumes/%d", i), HostPath: "/tmp", MountOptions: []string{"nosuid", "noexec"},
			})
		}
	}},
	{"devices", 400, func(in *Input, n int) {
		for i := range n {
			in.Config.Devices = append(in.Config.Devices, &runtimeapi.Device{
				HostPath: "/dev/null", ContainerPath: fmt.Sprintf("/dev/null%d", i), Permissions: "r",
			})
		}
	}},
	{"CDI_devices", 900, func(in *Input, n int) {
		for i := range n {
			in.Config.CDIDevices = append(in.Config.CDIDevices, &runtimeapi.CDIDevice{Name: fmt.Sprintf("vendor.com/class=d%d", i)})
		}
	}},
	{"annotations", 900, func(in *Input, n int) {
		in.AllowedAnnotations = []string{"example.com/*"}
		in.Config.Annotations = map[string]string{}
		for i := range n {
			in.Config.Annotations[fmt.Sprintf("example.com/%d", i)] = "value"
		}
	}},
	{"supplemental_groups", 6000, func(in *Input, n int) {
		for i := range n {
			in.Config.Linux.SecurityContext.SupplementalGroups = append(in.Config.Linux.SecurityContext.SupplementalGroups, int64(n-i))
		}
	}},
	{"capabilities", 900, func(in *Input, n int) {
		in.Config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: strings.Split(strings.Repeat("CHOWN,", n)+"CHOWN", ",")}
	}},
	{"hugepage_limits", 900, func(in *Input, n int) {
		for i := range n {
			in.Config.Linux.Resources.HugepageLimits = append(in.Config.Linux.Resources.HugepageLimits,
				&runtimeapi.HugepageLimit{PageSize: fmt.Sprintf("%dKB", i+1)})
		}
	}},
}

// grown is a request with a list of n entries. It is complete enough for Build.
func grown(t *testing.T, g growth, n int) Input {
	in := testInput(t)
	in.Host = testHost(cgroup.V2)
	if in.Config.Linux == nil {
		in.Config.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	if in.Config.Linux.SecurityContext == nil {
		in.Config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{}
	}
	if in.Config.Linux.Resources == nil {
		in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{}
	}
	in.InjectCDI = func(*specs.Spec, []string) error { return nil }
	g.fill(&in, n)
	return in
}

// TestWorkGrowsWithTheRequest: ten times as long a list costs about ten times the CPU time. Quadratic
// work costs a hundred times.
func TestWorkGrowsWithTheRequest(t *testing.T) {
	const factor, most = 10, 40
	for _, g := range growths {
		t.Run(g.name, func(t *testing.T) {
			small := cpuTimeOf(t, grown(t, g, g.small))
			large := cpuTimeOf(t, grown(t, g, factor*g.small))
			if large > most*max(small, 100*time.Microsecond) {
				t.Errorf("%d entries take %v, %d entries take %v: more than %d times as much", g.small, small, factor*g.small, large, most)
			}
			in := grown(t, g, factor*g.small)
			in.Config.Linux.Resources = MergeResources(in.Config.Linux.Resources, in.Config.Linux.Resources)
			if _, err := Build(t.Context(), in); err != nil {
				t.Errorf("after an update: %v", err)
			}
		})
	}
}

// cpuTimeOf is the least CPU time that a build takes on its thread.
func cpuTimeOf(t *testing.T, in Input) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	least := time.Duration(0)
	for range 5 {
		before := threadTime(t)
		if _, err := Build(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		if took := threadTime(t) - before; least == 0 || took < least {
			least = took
		}
	}
	return least
}

func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &at); err != nil {
		t.Fatal(err)
	}
	return time.Duration(at.Nano())
}

// TestListsAreBounded: a list that is longer than its limit is refused by field, value and limit.
func TestListsAreBounded(t *testing.T) {
	words := strings.Split(strings.Repeat("a=b ", maxWords)+"a=b", " ")
	for field, fill := range map[string]func(in *Input){
		"envs":    func(in *Input) { in.Config.Envs = make([]*runtimeapi.KeyValue, maxWords+1) },
		"command": func(in *Input) { in.Config.Command = words },
		"mounts":  func(in *Input) { in.Config.Mounts = make([]*runtimeapi.Mount, maxMounts+1) },
		"mounts[0].uidMappings": func(in *Input) {
			in.Config.Mounts = []*runtimeapi.Mount{{UidMappings: make([]*runtimeapi.IDMapping, maxMappings+1)}}
		},
		"devices": func(in *Input) { in.Config.Devices = make([]*runtimeapi.Device, maxItems+1) },
		"CDI_devices": func(in *Input) {
			in.Config.Annotations = map[string]string{"cdi.k8s.io/x": manyNames(maxItems + 1)}
		},
		"annotations":                 func(in *Input) { in.Config.Annotations = map[string]string{"a": strings.Repeat("x", maxTagBytes)} },
		"labels":                      func(in *Input) { in.Config.Labels = tooManyTags() },
		"linux.resources.cpuset_cpus": func(in *Input) { in.Config.Linux.Resources.CpusetCpus = "0" + strings.Repeat(",0", maxValue) },
		"linux.security_context.supplemental_groups": func(in *Input) {
			in.Config.Linux.SecurityContext.SupplementalGroups = make([]int64, maxGroups+1)
		},
		"Env of the image":        func(in *Input) { in.Image.Env = words },
		"Cmd of the image":        func(in *Input) { in.Image.Cmd = words },
		"Entrypoint of the image": func(in *Input) { in.Image.Entrypoint = words },
		"Labels of the image":     func(in *Input) { in.Image.Labels = tooManyTags() },
		"User of the image":       func(in *Input) { in.Image.User = strings.Repeat("u", maxValue+1) },
	} {
		in := grown(t, growth{fill: func(*Input, int) {}}, 0)
		fill(&in)
		_, err := Build(t.Context(), in)
		if !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), field+" \"with ") || !strings.Contains(err.Error(), "has more than ") {
			t.Errorf("%s: %v", field, err)
		}
	}
	for field, pod := range map[string]*runtimeapi.PodSandboxConfig{
		"port_mappings":      {PortMappings: make([]*runtimeapi.PortMapping, maxItems+1)},
		"dns_config.servers": {DnsConfig: &runtimeapi.DNSConfig{Servers: make([]string, maxItems+1)}},
		"linux.sysctls":      {Linux: &runtimeapi.LinuxPodSandboxConfig{Sysctls: tooManyTags()}},
		"labels":             {Labels: tooManyTags()},
	} {
		pod.Metadata = &runtimeapi.PodSandboxMetadata{Name: "n", Namespace: "ns", Uid: "u"}
		if err := ValidateSandbox(pod); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), field+" \"with ") {
			t.Errorf("sandbox %s: %v", field, err)
		}
	}
	if err := CheckCommand("cmd", words); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), "cmd \"with ") {
		t.Errorf("cmd: %v", err)
	}
	if err := CheckImage(ocispec.ImageConfig{Env: []string{"A=b"}}); err != nil {
		t.Errorf("an ordinary image: %v", err)
	}
}

// tooManyTags are more than maxTags, and so more than maxItems.
func tooManyTags() map[string]string {
	tags := map[string]string{}
	for i := range max(maxTags, maxItems) + 1 {
		tags[fmt.Sprintf("net.k%d", i)] = "v"
	}
	return tags
}

func manyNames(n int) string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("vendor.com/class=d%d", i))
	}
	return strings.Join(names, ",")
}

// TestBuildEndsWithItsContext: a canceled request costs nothing more.
func TestBuildEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, name := range []string{"mounts", "devices"} {
		for _, g := range growths {
			if g.name != name {
				continue
			}
			in := grown(t, g, 3)
			if _, err := Build(ctx, in); !errors.Is(err, ctx.Err()) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := walkDevices(ctx, "devices[0]", dir, "/dev", nil); !errors.Is(err, ctx.Err()) {
		t.Errorf("walk: %v", err)
	}
}

// endsAfter is a context that ends once it was asked that often.
type endsAfter struct {
	context.Context
	left int
}

func (c *endsAfter) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestEverySectionHonoursItsContext: whichever section is being made when the request ends is the last one.
func TestEverySectionHonoursItsContext(t *testing.T) {
	in := testInput(t)
	ids := &runtimeapi.IDMapping{HostId: 100000, Length: 65536}
	in.Pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usernsOf(modePod, ids, ids)
	sc(&in).RunAsUser, sc(&in).RunAsGroup, sc(&in).SupplementalGroups = nil, nil, nil
	in.Config.Mounts = []*runtimeapi.Mount{{HostPath: "/", ContainerPath: "/host"}}
	in.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/renamed"}}
	want := []string{"user", "arguments", "environment", "mounts[0]", "mount /host", "linux", "devices[0]", "bind /dev/renamed", "CDI_devices", "linux.security_context.seccomp"}
	var sections []string
	for asked := 0; ; asked++ {
		_, err := Build(&endsAfter{t.Context(), asked}, in)
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		section, _, _ := strings.Cut(err.Error(), ": ")
		sections = append(sections, section)
	}
	for _, section := range want {
		if !slices.Contains(sections, section) {
			t.Errorf("section %s does not look at its context: %q do", section, sections)
		}
	}
}
