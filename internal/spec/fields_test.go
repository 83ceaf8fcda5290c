package spec

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/warning"
)

func build(t *testing.T, in Input) *Output {
	t.Helper()
	out, err := Build(t.Context(), in)
	if err != nil {
		t.Fatalf("Build: %v", err)
	}
	return out
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// TestArguments: command and args of the request replace entry point and
// command of the image separately.
func TestArguments(t *testing.T) {
	for _, test := range []struct {
		name                string
		command, args, want []string
	}{
		{"image", nil, nil, []string{"/entry", "default"}},
		{"args", nil, []string{"a"}, []string{"/entry", "a"}},
		{"command", []string{"/c"}, nil, []string{"/c"}},
		{"both", []string{"/c"}, []string{"a"}, []string{"/c", "a"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := testInput(t)
			in.Config.Command, in.Config.Args = test.command, test.args
			equal(t, "args", build(t, in).Spec.Process.Args, test.want)
		})
	}
}

// TestUser: the user comes from the request, else from the image; groups are
// merged with those of the image unless the policy is strict.
func TestUser(t *testing.T) {
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	strict := runtimeapi.SupplementalGroupsPolicy_Strict
	for _, test := range []struct {
		name, image string
		sc          *runtimeapi.LinuxContainerSecurityContext
		uid, gid    uint32
		groups      []uint32
	}{
		{"unset", "", nil, 0, 0, []uint32{0}},
		{"image-name", "www-data", nil, 33, 33, []uint32{33, 50000}},
		{"image-number", "1000", nil, 1000, 1000, []uint32{4, 1000, 50000}},
		{"image-unknown-number", "4242", nil, 4242, 0, []uint32{0}},
		{"image-group-name", "app:www-data", nil, 1000, 33, []uint32{4, 33, 50000}},
		{"image-group-number", "1003:77", nil, 1003, 77, []uint32{77}},
		{"image-group-empty", "app:", nil, 1000, 1000, []uint32{4, 1000, 50000}},
		{"uid", "app", &runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(33)}, 33, 33, []uint32{33, 50000}},
		{"uid-zero", "app", &runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(0)}, 0, 0, []uint32{0}},
		{"uid-gid", "", &runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(5), RunAsGroup: id(6)}, 5, 6, []uint32{6}},
		{"name", "", &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "nogroup"}, 1001, 7777, []uint32{7777}},
		{
			"merge", "", &runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(1000), SupplementalGroups: []int64{1234, 4}},
			1000, 1000, []uint32{4, 1000, 1234, 50000},
		},
		{
			"strict", "", &runtimeapi.LinuxContainerSecurityContext{
				RunAsUser: id(1000), SupplementalGroups: []int64{1234}, SupplementalGroupsPolicy: strict,
			}, 1000, 1000, []uint32{1000, 1234},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := testInput(t)
			in.Image.User, in.Config.Linux.SecurityContext = test.image, test.sc
			out := build(t, in)
			user := out.Spec.Process.User
			if user.UID != test.uid || user.GID != test.gid || !slices.Equal(user.AdditionalGids, test.groups) {
				t.Errorf("got %d:%d %v, want %d:%d %v", user.UID, user.GID, user.AdditionalGids, test.uid, test.gid, test.groups)
			}
			if linux := out.User.GetLinux(); linux.GetUid() != int64(test.uid) || len(linux.GetSupplementalGroups()) != len(test.groups) {
				t.Errorf("status: got %v, want %d and %v", linux, test.uid, test.groups)
			}
		})
	}
}

// TestAccountsStayInside replaces passwd by things that would lead a careless
// reader out of the root file system or into a trap.
func TestAccountsStayInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("spy:x:7:7::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		place func(file string) error
		kind  func(error) bool
	}{
		{"absolute-link", func(file string) error { return os.Symlink(outside, file) }, errdefs.IsInvalidArgument},
		{"relative-link", func(file string) error {
			return os.Symlink(strings.Repeat("../", 20)+outside, file)
		}, errdefs.IsInvalidArgument},
		{"directory", func(file string) error { return os.Mkdir(file, 0o755) }, errdefs.IsInvalidArgument},
		{"inside-link", func(file string) error {
			if err := os.WriteFile(filepath.Join(filepath.Dir(file), "real"), []byte("spy:x:7:7::/:\n"), 0o644); err != nil {
				return err
			}
			return os.Symlink("/etc/real", file)
		}, func(err error) bool { return err == nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := testInput(t)
			file := filepath.Join(in.Rootfs, "etc/passwd")
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if err := test.place(file); err != nil {
				t.Fatal(err)
			}
			in.Config.Linux.SecurityContext.RunAsUsername = "spy"
			if _, err := Build(t.Context(), in); !test.kind(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestCapabilities: ALL first, then names, then drops; nothing that the daemon
// does not have.
func TestCapabilities(t *testing.T) {
	host := Host{Capabilities: []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN", "CAP_SYS_TIME"}}
	for _, test := range []struct {
		name                 string
		add, drop, ambient   []string
		wantSet, wantAmbient []string
	}{
		{"default", nil, nil, nil, []string{"CAP_CHOWN", "CAP_KILL"}, nil},
		{"add", []string{"cap_net_admin"}, nil, nil, []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN"}, nil},
		{"add-all", []string{"ALL"}, nil, nil, host.Capabilities, nil},
		{"add-all-drop", []string{"all"}, []string{"SYS_TIME"}, nil, []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN"}, nil},
		{"drop-all", nil, []string{"ALL"}, nil, nil, nil},
		{"drop-all-add", []string{"KILL"}, []string{"ALL"}, nil, []string{"CAP_KILL"}, nil},
		{"ambient", nil, []string{"ALL"}, []string{"NET_ADMIN"}, []string{"CAP_NET_ADMIN"}, []string{"CAP_NET_ADMIN"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := capabilities(Input{Host: host, Defaults: &Defaults{}, Config: withSecurity(&runtimeapi.LinuxContainerSecurityContext{
				Capabilities: &runtimeapi.Capability{
					AddCapabilities: test.add, DropCapabilities: test.drop, AddAmbientCapabilities: test.ambient,
				},
			})})
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "bounding", got.Bounding, test.wantSet)
			equal(t, "effective", got.Effective, test.wantSet)
			equal(t, "permitted", got.Permitted, test.wantSet)
			equal(t, "ambient", got.Ambient, test.wantAmbient)
			equal(t, "inheritable", got.Inheritable, test.wantAmbient)
		})
	}
}

// TestResources checks both kinds of hosts, and that raw values win.
func TestResources(t *testing.T) {
	v1, v2 := testHost(cgroup.Hybrid), testHost(cgroup.V2)
	unified := func(pairs ...string) *runtimeapi.LinuxContainerResources {
		r := &runtimeapi.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 1 << 20, Unified: map[string]string{}}
		for i := 0; i < len(pairs); i += 2 {
			r.Unified[pairs[i]] = pairs[i+1]
		}
		return r
	}
	for _, test := range []struct {
		name    string
		host    Host
		request *runtimeapi.LinuxContainerResources
		refused bool
		check   func(*specs.LinuxResources) bool
	}{
		{"nil", v1, nil, false, func(r *specs.LinuxResources) bool { return r.CPU == nil && r.Memory == nil }},
		{"v1-no-op", v1, unified("memory.min", "0", "memory.low", "0", "memory.high", "max", "memory.oom.group", "0"), false,
			func(r *specs.LinuxResources) bool { return r.Unified == nil }},
		{"v1-ignored", v1, unified("memory.oom.group", "1"), false, func(r *specs.LinuxResources) bool { return r.Unified == nil }},
		{"v1-high", v1, unified("memory.high", "1000"), false, func(r *specs.LinuxResources) bool { return r.Unified == nil }},
		{"v1-pids", v1, unified("pids.max", "5"), false, func(r *specs.LinuxResources) bool { return *r.Pids.Limit == 5 }},
		{"v2-pids-max", v2, unified("pids.max", "max"), false, func(r *specs.LinuxResources) bool {
			return r.Pids == nil && r.Unified["pids.max"] == "max"
		}},
		{"v1-pids-max", v1, unified("pids.max", "max"), false, func(r *specs.LinuxResources) bool { return *r.Pids.Limit == -1 }},
		{"v2-passed-on", v2, unified("memory.min", "0"), false, func(r *specs.LinuxResources) bool { return r.Unified["memory.min"] == "0" }},
		{"v2-swap-wins", v2, unified("memory.swap.max", "7"), false, func(r *specs.LinuxResources) bool {
			return r.Unified["memory.swap.max"] == "7" && r.Memory.Swap == nil && *r.Memory.Limit == 1<<20
		}},
		{"v2-weight-wins", v2, unified("cpu.weight", "7"), false, func(r *specs.LinuxResources) bool { return r.CPU.Shares == nil }},
		{"v2-no-controller", v2, unified("rdma.max", "mlx4_0 hca_handle=2"), true, nil},
		{"swap-is-memory", v1, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5 << 20}, false,
			func(r *specs.LinuxResources) bool { return *r.Memory.Swap == 5<<20 }},
		{"swap-unaccounted", Host{}, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 5}, false,
			func(r *specs.LinuxResources) bool { return r.Memory.Swap == nil }},
		{"hugepages-absent", Host{}, &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}}, false,
			func(r *specs.LinuxResources) bool { return r.HugepageLimits == nil }},
		{"hugepages-uncounted", Host{}, &runtimeapi.LinuxContainerResources{
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}}, false,
			func(r *specs.LinuxResources) bool { return r.HugepageLimits == nil }},
		{"hugepages-refused", Host{HugepageSizes: []string{"1GB"}}, &runtimeapi.LinuxContainerResources{
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}}, true, nil},
		{"one-share", v2, &runtimeapi.LinuxContainerResources{CpuShares: 1}, false,
			func(r *specs.LinuxResources) bool { return *r.CPU.Shares == 2 }},
		{"most-shares", v2, &runtimeapi.LinuxContainerResources{CpuShares: 1 << 40}, false,
			func(r *specs.LinuxResources) bool { return *r.CPU.Shares == 1<<18 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Resources(test.request, test.host, nil)
			if test.refused {
				if !errdefs.IsFailedPrecondition(err) {
					t.Errorf("got %v, want a failed precondition", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !test.check(got) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestSignals goes through every value of CRI and through the forms that
// images use.
func TestSignals(t *testing.T) {
	same := map[string]string{"SIGNAL_SIGCLD": "SIGCHLD", "SIGNAL_SIGIOT": "SIGABRT", "SIGNAL_SIGPOLL": "SIGIO"}
	for number, key := range runtimeapi.Signal_name {
		if number == 0 {
			continue
		}
		in := testInput(t)
		in.Config.StopSignal = runtimeapi.Signal(number)
		in.warnings = &warning.List{}
		name := stopSignal(in)
		if len(*in.warnings) > 0 {
			t.Errorf("%s: %v", key, *in.warnings)
		}
		want := runtimeapi.Signal(number)
		if alias, ok := same[key]; ok {
			want = runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+alias])
		}
		if got := SignalEnum(name); got != want {
			t.Errorf("%s is %s and back %s, want %s", key, name, got, want)
		}
	}
	for text, want := range map[string]string{
		"": "SIGTERM", "15": "SIGTERM", "sigquit": "SIGQUIT", "KILL": "SIGKILL", "SIGRTMIN+3": "SIGRTMIN+3",
		"RTMAX-1": "SIGRTMAX-1", "37": "SIGRTMIN+3", "64": "SIGRTMAX", "nonsense": "SIGTERM", "0": "SIGTERM",
	} {
		in := testInput(t)
		in.Image.StopSignal = text
		if name := stopSignal(in); name != want {
			t.Errorf("image says %q: got %s, want %s", text, name, want)
		}
	}
}

// TestEnvironment: request over image over customary, each name once.
func TestEnvironment(t *testing.T) {
	in := testInput(t)
	in.Image.Env = []string{"A=1", "BARE", "B=2", "A=3"}
	in.Config.Envs = []*runtimeapi.KeyValue{{Key: "B", Value: []byte("x=y")}, {Key: "HOSTNAME", Value: []byte("own")}}
	equal(t, "env", build(t, in).Spec.Process.Env, []string{defaultPath, "HOSTNAME=own", "A=3", "B=x=y"})
}

// TestProcess derives an exec from the first process without touching it.
func TestProcess(t *testing.T) {
	base := build(t, testInput(t)).Spec.Process
	got := Process(base, []string{"ls"}, true)
	if !got.Terminal || !slices.Contains(got.Env, defaultTerm) || got.Args[0] != "ls" {
		t.Errorf("got %+v", got)
	}
	if base.Terminal || slices.Contains(base.Env, defaultTerm) || base.Args[0] != "/entry" {
		t.Errorf("the base was changed: %+v", base)
	}
}

// TestProfileConditions decides the conditions that Docker's profiles have.
func TestProfileConditions(t *testing.T) {
	rule := func(name, conditions string) string {
		return `{"names":["` + name + `"],"action":"SCMP_ACT_ALLOW"` + conditions + `}`
	}
	text := `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[` + strings.Join([]string{
		rule("always", ""),
		rule("cap", `,"includes":{"caps":["CAP_BPF"]}`),
		rule("no-cap", `,"includes":{"caps":["CAP_SYS_ADMIN"]}`),
		rule("not-excluded", `,"excludes":{"caps":["CAP_SYS_ADMIN"]}`),
		rule("excluded", `,"excludes":{"caps":["CAP_BPF"]}`),
		rule("arch", `,"includes":{"arches":["`+runtime.GOARCH+`"]}`),
		rule("other-arch", `,"includes":{"arches":["vax"]}`),
		rule("old-kernel", `,"includes":{"minKernel":"2.6"}`),
		rule("new-kernel", `,"includes":{"minKernel":"99.0"}`),
	}, ",") + `]}`
	profile, err := parseProfile([]byte(text), []string{"CAP_BPF"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, rule := range profile.Syscalls {
		names = append(names, rule.Names...)
	}
	equal(t, "rules", names, []string{"always", "cap", "not-excluded", "arch", "old-kernel"})
	for _, bad := range []string{
		`{}`, `{"defaultAction":"ALLOW"}`, `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["VAX"]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[""],"action":"SCMP_ACT_ALLOW"}]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"new"}}]}`,
	} {
		if _, err := parseProfile([]byte(bad), nil); err == nil {
			t.Errorf("%s: accepted", bad)
		}
	}
}

// TestSeccomp: absent means none, empty means the default, privileged ignores
// what is asked.
func TestSeccomp(t *testing.T) {
	for _, test := range []struct {
		name    string
		profile *runtimeapi.SecurityProfile
		change  func(in *Input)
		want    bool
	}{
		{"absent", nil, nil, false},
		{"default", &runtimeapi.SecurityProfile{}, nil, true},
		{"unconfined", &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil, false},
		{"no-kernel-support", &runtimeapi.SecurityProfile{}, func(in *Input) { in.Host.Seccomp = false }, false},
		{"privileged", &runtimeapi.SecurityProfile{}, func(in *Input) {
			in.Pod.Linux.SecurityContext.Privileged, in.Config.Linux.SecurityContext.Privileged = true, true
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := testInput(t)
			in.Config.Linux.SecurityContext.Seccomp = test.profile
			if test.change != nil {
				test.change(&in)
			}
			if got := build(t, in).Spec.Linux.Seccomp != nil; got != test.want {
				t.Errorf("filter: got %t, want %t", got, test.want)
			}
		})
	}
}
