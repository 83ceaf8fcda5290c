package spec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/warning"
	"github.com/berth-runtime/berth/test/privilege"
)

// TestReadHost reads this machine and checks what holds on every one.
func TestReadHost(t *testing.T) {
	privilege.Root(t)
	host, err := ReadHost()
	if err != nil {
		t.Fatal(err)
	}
	if host.Name == "" || host.Cgroup == 0 || len(host.Controllers) == 0 {
		t.Errorf("got %+v, want a name, a cgroup mode and controllers", host)
	}
	if !slices.Contains(host.Capabilities, "CAP_SYS_ADMIN") {
		t.Errorf("capabilities: got %v, want CAP_SYS_ADMIN among them (run the tests as root)", host.Capabilities)
	}
	if host.MinOOMScoreAdj < minOOMScoreAdj || host.MinOOMScoreAdj > maxOOMScoreAdj {
		t.Errorf("least OOM score: got %d", host.MinOOMScoreAdj)
	}
	// What is said to be settable is settable.
	file := "/proc/self/oom_score_adj"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if host.MinOOMScoreAdj != minOOMScoreAdj {
		if err := os.WriteFile(file, before, 0); err != nil {
			t.Errorf("set the OOM score to what it is: %v", err)
		}
	}
}

// TestHugepageSizes turns the kernel's directory names into those of its
// control files.
func TestHugepageSizes(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"hugepages-1048576kB", "hugepages-64kB", "hugepages-2048kB", "hugepages-16777216kB"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err := hugepageSizes(dir)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "sizes", got, []string{"64KB", "2MB", "1GB", "16GB"})
	if got, err := hugepageSizes(filepath.Join(dir, "absent")); err != nil || got != nil {
		t.Errorf("without huge pages: got %v, %v, want none", got, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "strange"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := hugepageSizes(dir); err == nil {
		t.Error("a strange name was accepted")
	}
}

// TestReadAppArmor reads the files of hosts with and without AppArmor.
func TestReadAppArmor(t *testing.T) {
	dir := t.TempDir()
	enabled, loaded := filepath.Join(dir, "enabled"), filepath.Join(dir, "profiles")
	write := func(file, content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func() Host {
		t.Helper()
		var host Host
		if err := readAppArmor(&host, enabled, loaded); err != nil {
			t.Fatal(err)
		}
		return host
	}
	if read().AppArmor {
		t.Error("without the module: got enabled")
	}
	write(enabled, "N\n")
	if read().AppArmor {
		t.Error("switched off: got enabled")
	}
	write(enabled, "Y\n")
	write(loaded, "/usr/bin/my program (enforce)\nberth-default (complain)\n")
	host := read()
	if loaded, err := host.profileLoaded("later"); err != nil || loaded {
		t.Errorf("before it is loaded: got %v, %v", loaded, err)
	}
	write(loaded, "/usr/bin/my program (enforce)\nberth-default (complain)\nlater (enforce)\n")
	if loaded, err := host.profileLoaded("later"); err != nil || !loaded {
		t.Errorf("a profile that was loaded later: got %v, %v", loaded, err)
	}
	equal(t, "profiles", host.AppArmorProfiles, []string{"/usr/bin/my program", "berth-default"})
	if !host.AppArmor || host.AppArmorDefault != "berth-default" {
		t.Errorf("got %+v, want AppArmor with a default profile", host)
	}
}

// TestLabels: AppArmor profiles and SELinux labels on hosts that have them.
func TestLabels(t *testing.T) {
	local := func(ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	//nolint:staticcheck // the deprecated field still counts
	for name, test := range map[string]struct {
		sc   *runtimeapi.LinuxContainerSecurityContext
		want string
	}{
		"nothing":        {nil, "berth-default"},
		"default":        {&runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{}}, "berth-default"},
		"unconfined":     {&runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "unconfined"}, ""},
		"new":            {&runtimeapi.LinuxContainerSecurityContext{Apparmor: local("localhost/x")}, "x"},
		"no-prefix":      {&runtimeapi.LinuxContainerSecurityContext{Apparmor: local("x")}, "x"},
		"deprecated":     {&runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "localhost/x"}, "x"},
		"new-wins":       {&runtimeapi.LinuxContainerSecurityContext{Apparmor: local("x"), ApparmorProfile: "localhost/gone"}, "x"},
		"new-wins-again": {&runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{}, ApparmorProfile: "localhost/gone"}, "berth-default"},
		"privileged":     {&runtimeapi.LinuxContainerSecurityContext{Privileged: true, Apparmor: local("x")}, ""},
	} {
		host := Host{AppArmor: true, AppArmorDefault: "berth-default", AppArmorProfiles: []string{"berth-default", "x"}}
		if got, err := appArmorProfile(Input{Host: host, Config: withSecurity(test.sc)}); err != nil || got != test.want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, test.want)
		}
	}
	for what, test := range map[string]struct {
		sc     *runtimeapi.LinuxContainerSecurityContext
		host   Host
		warned bool
	}{
		"confined here":      {withSELinux(&runtimeapi.SELinuxOption{Level: "s0:c1,c2"}, false), Host{SELinux: true}, false},
		"confined elsewhere": {withSELinux(&runtimeapi.SELinuxOption{Level: "s0:c1,c2"}, false), Host{}, true},
		"not confined":       {withSELinux(&runtimeapi.SELinuxOption{Type: "spc_t"}, false), Host{}, false},
		"privileged":         {withSELinux(&runtimeapi.SELinuxOption{Level: "s0"}, true), Host{}, false},
		"nothing":            {withSELinux(&runtimeapi.SELinuxOption{}, false), Host{}, false},
	} {
		var warnings warning.List
		if err := checkSELinux(test.sc, test.host, &warnings); err != nil || (len(warnings) > 0) != test.warned {
			t.Errorf("%s: got %v, warnings %v, want warned %v", what, err, warnings, test.warned)
		}
	}
}

func withSELinux(options *runtimeapi.SELinuxOption, privileged bool) *runtimeapi.LinuxContainerSecurityContext {
	return &runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: options, Privileged: privileged}
}

// TestUnifiedReplacesTyped goes through every limit that has both forms.
func TestUnifiedReplacesTyped(t *testing.T) {
	request := &runtimeapi.LinuxContainerResources{
		CpuShares: 100, CpuQuota: 5000, CpuPeriod: 10000, CpusetCpus: "0", CpusetMems: "0", MemoryLimitInBytes: 1 << 20,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}, {PageSize: "1GB", Limit: 1}},
		Unified: map[string]string{
			"cpu.weight": "5", "cpu.max": "max 10000", "cpuset.cpus": "1", "cpuset.mems": "0", "memory.max": "9",
			"hugetlb.2MB.max": "7",
		},
	}
	got, err := Resources(request, testHost(cgroup.V2), nil)
	if err != nil {
		t.Fatal(err)
	}
	if *got.CPU != (specs.LinuxCPU{}) || got.Memory != nil {
		t.Errorf("typed limits: got %+v and %+v, want none", got.CPU, got.Memory)
	}
	if len(got.HugepageLimits) != 1 || got.HugepageLimits[0].Pagesize != "1GB" {
		t.Errorf("huge pages: got %v, want 1GB alone", got.HugepageLimits)
	}
	if len(got.Unified) != len(request.Unified) {
		t.Errorf("unified: got %v, want %v", got.Unified, request.Unified)
	}
}

// TestCheckSandbox refuses a user namespace where there is no support for it.
func TestCheckSandbox(t *testing.T) {
	pod := testInput(t).Pod
	if err := CheckSandbox(pod, Host{}); err != nil {
		t.Errorf("without a user namespace: got %v, want nil", err)
	}
	ids := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
	pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: ids, Gids: ids}
	if err := CheckSandbox(pod, Host{NoUserNamespaces: "too old"}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "too old") {
		t.Errorf("without support: got %v, want a failed precondition that says why", err)
	}
	if err := CheckSandbox(pod, Host{}); err != nil {
		t.Errorf("with support: got %v, want nil", err)
	}
}

func withSecurity(sc *runtimeapi.LinuxContainerSecurityContext) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: sc}}
}
