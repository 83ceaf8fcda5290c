package nri

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func someSpec() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{
			Args: []string{"old"}, Env: []string{"A=1", "AB=2", "C=3"},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1, Soft: 1}, {Type: "RLIMIT_CORE"}},
		},
		Annotations: map[string]string{"keep": "1", "go": "1"},
		Mounts:      []specs.Mount{{Destination: "/a/b", Type: "tmpfs"}, {Destination: "/c", Type: "tmpfs"}},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.UTSNamespace, Path: "/uts"}},
			Devices:    []specs.LinuxDevice{{Path: "/dev/old", Type: "c", Major: 1, Minor: 3}},
			Sysctl:     map[string]string{"net.a": "1", "net.b": "1"},
			IntelRdt:   &specs.LinuxIntelRdt{ClosID: "old"},
		},
	}
}

// TestAdjust changes one thing at a time and looks at it; the tests with real
// plugins see that a container is like that.
func TestAdjust(t *testing.T) {
	score := 7
	for _, test := range []struct {
		name   string
		change func(*api.ContainerAdjustment)
		ok     func(*specs.Spec) bool
	}{
		{"args", func(a *api.ContainerAdjustment) { a.SetArgs([]string{"new"}) },
			func(s *specs.Spec) bool { return slices.Equal(s.Process.Args, []string{"new"}) }},
		{"env", func(a *api.ContainerAdjustment) {
			a.AddEnv("A", "x")
			a.AddEnv("N", "y")
			a.RemoveEnv("C")
			a.RemoveEnv("Z")
		},
			func(s *specs.Spec) bool { return slices.Equal(s.Process.Env, []string{"A=x", "AB=2", "N=y"}) }},
		{"annotations", func(a *api.ContainerAdjustment) { a.RemoveAnnotation("go"); a.AddAnnotation("new", "2") },
			func(s *specs.Spec) bool { return len(s.Annotations) == 2 && s.Annotations["new"] == "2" }},
		{"rlimits", func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_NOFILE", 9, 8) },
			func(s *specs.Spec) bool { return len(s.Process.Rlimits) == 2 && s.Process.Rlimits[1].Hard == 9 }},
		{"mounts", func(a *api.ContainerAdjustment) {
			a.RemoveMount("/c")
			a.AddMount(&api.Mount{Destination: "/a", Type: "tmpfs", Options: []string{"rslave"}})
		}, func(s *specs.Spec) bool {
			return len(s.Mounts) == 2 && s.Mounts[0].Destination == "/a" && s.Linux.RootfsPropagation == "rslave"
		}},
		{"hooks", func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/x", Timeout: api.Int(3)}}})
		}, func(s *specs.Spec) bool { return len(s.Hooks.Poststop) == 1 && *s.Hooks.Poststop[0].Timeout == 3 }},
		{"devices", func(a *api.ContainerAdjustment) {
			a.RemoveDevice("/dev/old")
			a.AddDevice(&api.LinuxDevice{Path: "/dev/new", Type: "b", Major: 7, Minor: 1})
		}, func(s *specs.Spec) bool {
			rules := s.Linux.Resources.Devices
			return len(s.Linux.Devices) == 1 && s.Linux.Devices[0].Path == "/dev/new" && len(rules) == 1 && *rules[0].Major == 7
		}},
		{"oom-score", func(a *api.ContainerAdjustment) { a.SetLinuxOomScoreAdj(&score) },
			func(s *specs.Spec) bool { return *s.Process.OOMScoreAdj == 7 }},
		{"cgroups-path", func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/x/y") },
			func(s *specs.Spec) bool { return s.Linux.CgroupsPath == "/x/y" }},
		{"io-priority", func(a *api.ContainerAdjustment) {
			a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 5})
		}, func(s *specs.Spec) bool { return s.Process.IOPriority.Priority == 5 }},
		{"scheduler", func(a *api.ContainerAdjustment) {
			a.SetLinuxScheduler(&api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH, Nice: 4})
		}, func(s *specs.Spec) bool {
			return s.Process.Scheduler.Policy == specs.SchedBatch && s.Process.Scheduler.Nice == 4
		}},
		{"seccomp", func(a *api.ContainerAdjustment) {
			a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{
				DefaultAction: "SCMP_ACT_ERRNO", DefaultErrno: api.UInt32(uint32(13)), Architectures: []string{"SCMP_ARCH_X86_64"},
				Syscalls: []*api.LinuxSyscall{{Names: []string{"read"}, Action: "SCMP_ACT_ALLOW"}},
			})
		}, func(s *specs.Spec) bool {
			p := s.Linux.Seccomp
			return *p.DefaultErrnoRet == 13 && len(p.Architectures) == 1 && p.Syscalls[0].Names[0] == "read"
		}},
		{"namespaces", func(a *api.ContainerAdjustment) {
			a.RemoveNamespace(&api.LinuxNamespace{Type: "uts"})
			a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "pid", Path: "/p"})
			a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "ipc", Path: "/i"})
		}, func(s *specs.Spec) bool {
			return slices.Equal(s.Linux.Namespaces, []specs.LinuxNamespace{{Type: "pid", Path: "/p"}, {Type: "ipc", Path: "/i"}})
		}},
		{"sysctl", func(a *api.ContainerAdjustment) {
			a.SetLinuxSysctl("net.a", "2")
			a.Linux.Sysctl[api.MarkForRemoval("net.b")] = ""
		}, func(s *specs.Spec) bool { return len(s.Linux.Sysctl) == 1 && s.Linux.Sysctl["net.a"] == "2" }},
		{"net-devices", func(a *api.ContainerAdjustment) { a.AddLinuxNetDevice("eth5", &api.LinuxNetDevice{Name: "in"}) },
			func(s *specs.Spec) bool { return s.Linux.NetDevices["eth5"].Name == "in" }},
		{"memory-policy", func(a *api.ContainerAdjustment) { a.SetLinuxMemoryPolicy(api.MpolMode_MPOL_BIND, "0") },
			func(s *specs.Spec) bool {
				return s.Linux.MemoryPolicy.Mode == specs.MpolBind && s.Linux.MemoryPolicy.Nodes == "0"
			}},
		{"rdt", func(a *api.ContainerAdjustment) { a.RemoveLinuxRDT(); a.SetLinuxRDTSchemata([]string{"L3:0=f"}) },
			func(s *specs.Spec) bool { return s.Linux.IntelRdt.ClosID == "" && len(s.Linux.IntelRdt.Schemata) == 1 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, a := someSpec(), &api.ContainerAdjustment{}
			test.change(a)
			if err := Adjust(s, a, nil); err != nil {
				t.Fatal(err)
			}
			if !test.ok(s) {
				t.Errorf("the adjustment %v makes %+v, %+v", a, s, s.Linux)
			}
		})
	}
}

// TestAdjustRefuses: what cannot be had is an error that names it.
func TestAdjustRefuses(t *testing.T) {
	for name, change := range map[string]func(*api.ContainerAdjustment){
		"relative-mount": func(a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "x", Type: "tmpfs"}) },
		"no-source": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/x", Source: "/no/such/file", Options: []string{"rbind"}})
		},
		"namespace": func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "space"}) },
		"cdi":       func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "a.b/c=d"}) },
	} {
		t.Run(name, func(t *testing.T) {
			a := &api.ContainerAdjustment{}
			change(a)
			refuse := func(*specs.Spec, []string) error { return errdefs.ErrInvalidArgument }
			if err := Adjust(someSpec(), a, refuse); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %v, want an invalid argument", err)
			}
		})
	}
}

// TestMarkRemoved: the library forgets which variables and devices a plugin
// removed; they are found by what is left.
func TestMarkRemoved(t *testing.T) {
	s, a := someSpec(), &api.ContainerAdjustment{}
	a.AddEnv("C", "4")
	markRemoved(a, s, &api.Container{Env: []string{"AB=2", "C=4"}, Linux: &api.LinuxContainer{}})
	if err := Adjust(s, a, nil); err != nil {
		t.Fatal(err)
	}
	if want := []string{"AB=2", "C=4"}; !slices.Equal(s.Process.Env, want) || len(s.Linux.Devices) != 0 {
		t.Errorf("environment is %q, devices are %v, want %q and none", s.Process.Env, s.Linux.Devices, want)
	}
}
