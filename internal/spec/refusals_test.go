package spec

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
)

type change = func(in *Input)

func sc(in *Input) *runtimeapi.LinuxContainerSecurityContext { return in.Config.Linux.SecurityContext }

func withMount(m *runtimeapi.Mount) change {
	return func(in *Input) {
		if m.ContainerPath == "" {
			m.ContainerPath = "/m"
		}
		in.Config.Mounts = []*runtimeapi.Mount{m}
	}
}

func withResources(r *runtimeapi.LinuxContainerResources) change {
	return func(in *Input) { in.Config.Linux.Resources = r }
}

// invalidContainers are requests that are wrong in themselves, by the field
// that the error must name.
var invalidContainers = map[string]change{
	"config ":                   func(in *Input) { in.Config = nil },
	"sandbox_config":            func(in *Input) { in.Pod = nil },
	"metadata.name":             func(in *Input) { in.Config.Metadata = nil },
	"image.image":               func(in *Input) { in.Config.Image = nil },
	"command \"\"":              func(in *Input) { in.Image.Entrypoint, in.Image.Cmd = nil, nil },
	"command[0] \"\"":           func(in *Input) { in.Config.Command = []string{""} },
	"command[1]":                func(in *Input) { in.Config.Command = []string{"a", "\x00"} },
	"args[0]":                   func(in *Input) { in.Config.Args = []string{"\x00"} },
	"working_dir":               func(in *Input) { in.Config.WorkingDir = "a/b" },
	"envs[0].key":               func(in *Input) { in.Config.Envs = []*runtimeapi.KeyValue{{Key: "=B"}} },
	"envs[0].value":             func(in *Input) { in.Config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte{0}}} },
	"log_path \"../x\"":         func(in *Input) { in.Config.LogPath = "../x" },
	"metadata.name \"a\\n\"":    func(in *Input) { in.Config.Metadata.Name = "a\n" },
	"log_path \"a/..":           func(in *Input) { in.Config.LogPath = "a/.." },
	"log_path \".\"":            func(in *Input) { in.Config.LogPath = "." },
	"log_path \"aaaa":           func(in *Input) { in.Config.LogPath = strings.Repeat("a", 256) },
	"below /":                   withMount(&runtimeapi.Mount{ContainerPath: "//", HostPath: "/"}),
	"mounts[0].host_path \"\"":  withMount(&runtimeapi.Mount{}),
	"mounts[0].host_path \"r\"": withMount(&runtimeapi.Mount{HostPath: "r"}),
	"does not exist":            withMount(&runtimeapi.Mount{HostPath: "/does/not/exist"}),
	"needs readonly":            withMount(&runtimeapi.Mount{HostPath: "/", RecursiveReadOnly: true}),
	"PROPAGATION_PRIVATE": withMount(&runtimeapi.Mount{
		HostPath: "/", Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
	}),
	"mount_options \"loop\"": withMount(&runtimeapi.Mount{HostPath: "/", MountOptions: []string{"loop"}}),
	"contradicts":            withMount(&runtimeapi.Mount{HostPath: "/", Readonly: true, MountOptions: []string{"rw"}}),
	"CDI_devices[1].name \"gpu\"": func(in *Input) {
		in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "example.com/gpu=0"}, {Name: "gpu"}}
	},
	"annotations[\"cdi.k8s.io/x\"] \"\"": func(in *Input) {
		in.Config.Annotations = map[string]string{"cdi.k8s.io/x": "example.com/gpu=0,"}
	},
	"beside image":       withMount(&runtimeapi.Mount{HostPath: "/", Image: &runtimeapi.ImageSpec{Image: "x"}, Readonly: true}),
	"mounts[0].readonly": withMount(&runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: "x"}}),
	"image_sub_path \"../x\"": withMount(&runtimeapi.Mount{
		Image: &runtimeapi.ImageSpec{Image: "x"}, Readonly: true, ImageSubPath: "../x",
	}),
	"devices[0].permissions": func(in *Input) {
		in.Config.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/x", HostPath: "/dev/null", Permissions: "rx"}}
	},
	"devices[0].host_path": func(in *Input) {
		in.Config.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/x", HostPath: "/etc/passwd"}}
	},
	"devices[0].host_path \"\"":      func(in *Input) { in.Config.Devices = []*runtimeapi.Device{{ContainerPath: "/x"}} },
	"run_as_group":                   func(in *Input) { sc(in).RunAsGroup = &runtimeapi.Int64Value{Value: 1} },
	"run_as_user":                    func(in *Input) { sc(in).RunAsUser = &runtimeapi.Int64Value{Value: -1} },
	"run_as_username":                func(in *Input) { sc(in).RunAsUsername = "missing-user" },
	"supplemental_groups[0]":         func(in *Input) { sc(in).SupplementalGroups = []int64{1 << 40} },
	"supplemental_groups_policy":     func(in *Input) { sc(in).SupplementalGroupsPolicy = 9 },
	"user of the image":              func(in *Input) { in.Image.User = "ghost" },
	"/etc/group":                     func(in *Input) { in.Image.User = "app:ghost" },
	"privileged":                     func(in *Input) { sc(in).Privileged = true },
	"add_capabilities \"MAGIC\"":     func(in *Input) { sc(in).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"MAGIC"}} },
	"drop_capabilities":              func(in *Input) { sc(in).Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"MAGIC"}} },
	"seccomp.profile_type":           func(in *Input) { sc(in).Seccomp = &runtimeapi.SecurityProfile{ProfileType: 9} },
	"localhost_ref \"rel\"":          func(in *Input) { localhost(in, "rel") },
	"localhost_ref \"/nonexistent\"": func(in *Input) { localhost(in, "/nonexistent") },
	"localhost_ref \"/dev\"":         func(in *Input) { localhost(in, "/dev") },
	"is not a seccomp profile":       func(in *Input) { localhost(in, filepath.Join(in.Rootfs, "etc/passwd")) },
	"apparmor_profile": func(in *Input) {
		sc(in).ApparmorProfile = "nonsense" //nolint:staticcheck // the deprecated field still counts
	},
	"namespace_options.network":   func(in *Input) { sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{Network: modeContainer} },
	"namespace_options.ipc":       func(in *Input) { sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{Ipc: modeTarget} },
	"namespace_options.target_id": func(in *Input) { sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{Pid: modeTarget} },
	"namespace_options.pid":       func(in *Input) { sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{Pid: 17} },
	"differs from that of the sandbox, NODE": func(in *Input) {
		ids := []*runtimeapi.IDMapping{{Length: 1}}
		sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Uids: ids, Gids: ids}}
	},
	"cpu_period":                  withResources(&runtimeapi.LinuxContainerResources{CpuPeriod: 5}),
	"cpu_quota":                   withResources(&runtimeapi.LinuxContainerResources{CpuQuota: 5}),
	"cpu_quota 17592186044416":    withResources(&runtimeapi.LinuxContainerResources{CpuQuota: 1 << 44}),
	"cpu_shares":                  withResources(&runtimeapi.LinuxContainerResources{CpuShares: -1}),
	"memory_limit_in_bytes -2":    withResources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -2}),
	"memory_swap_limit_in_bytes":  withResources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 8}),
	"needs memory_limit_in_bytes": withResources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -1, MemorySwapLimitInBytes: 8}),
	"oom_score_adj":               withResources(&runtimeapi.LinuxContainerResources{OomScoreAdj: 1001}),
	"cpuset_cpus":                 withResources(&runtimeapi.LinuxContainerResources{CpusetCpus: "0,a"}),
	"2-1 is no range":             withResources(&runtimeapi.LinuxContainerResources{CpusetCpus: "2-1"}),
	"cpuset_mems":                 withResources(&runtimeapi.LinuxContainerResources{CpusetMems: "0-"}),
	"hugepage_limits[0].page_size": withResources(&runtimeapi.LinuxContainerResources{
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2 MB"}},
	}),
	"unified \"../../x\"":     withResources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"../../x": "1"}}),
	"unified \"cgroup.kill\"": withResources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"cgroup.kill": "1"}}),
	"unified.pids.max":        withResources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"pids.max": "0"}}),
}

func localhost(in *Input, file string) {
	sc(in).Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: file}
}

// ungrantable are requests that this host cannot grant.
var ungrantable = map[string]change{
	"add_capabilities \"SYS_RESOURCE\"": func(in *Input) {
		sc(in).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_RESOURCE"}}
	},
	"AppArmor is not enabled": func(in *Input) {
		sc(in).Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "localhost/x"}
	},
	"no AppArmor profile": func(in *Input) {
		in.Host.AppArmor, in.Host.AppArmorProfiles = true, []string{"y"}
		sc(in).Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "localhost/x"}
	},
	"no seccomp filters": func(in *Input) {
		in.Host.Seccomp = false
		localhost(in, filepath.Join(filepath.Dir(in.Rootfs), "profile.json"))
	},
	"recursive_read_only": func(in *Input) {
		in.Host.RecursiveReadOnly = false
		withMount(&runtimeapi.Mount{HostPath: "/", Readonly: true, RecursiveReadOnly: true})(in)
	},
	"mounts[0].uidMappings": func(in *Input) {
		ids := []*runtimeapi.IDMapping{{Length: 1}}
		withMount(&runtimeapi.Mount{HostPath: "/", UidMappings: ids, GidMappings: ids})(in)
	},
	"cpuset_cpus \"0,3-4\": this host has only 0-3,7": withResources(&runtimeapi.LinuxContainerResources{CpusetCpus: "0,3-4"}),
	"cpuset_mems \"2\": this host has only 0,3":       withResources(&runtimeapi.LinuxContainerResources{CpusetMems: "2"}),
	"cpuset_cpus \"0-31:2/4\"":                        withResources(&runtimeapi.LinuxContainerResources{CpusetCpus: "0-31:2/4"}),
	"mounts[0].image":                                 withMount(&runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: "x"}, Readonly: true}),
	"mounts[0].propagation":                           withMount(&runtimeapi.Mount{HostPath: "/proc", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}),
	"namespace_options.network":                       func(in *Input) { in.Namespaces.Net = "" },
	"namespace_options.pid": func(in *Input) {
		in.Namespaces.PID = ""
		sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{Pid: modePod}
	},
	"CDI_devices[0].name \"example.com/gpu=0\": the Container Device Interface is switched off": func(in *Input) {
		in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "example.com/gpu=0"}}
	},
}

// canonicalBuild is Build for a request as it comes, with all warnings.
func canonicalBuild(t *testing.T, in Input) (*Output, error) {
	t.Helper()
	config, warnings := Canonical(in.Config, in.Pod)
	in.Config = config
	out, err := Build(t.Context(), in)
	if err == nil {
		warnings.Append(out.Warnings...)
		out.Warnings = warnings
	}
	return out, err
}

// TestRefusals: each wrong request gets an error of the right kind that names
// the field.
func TestRefusals(t *testing.T) {
	for _, list := range []struct {
		name    string
		changes map[string]change
		kind    func(error) bool
	}{
		{"invalid", invalidContainers, errdefs.IsInvalidArgument},
		{"ungrantable", ungrantable, errdefs.IsFailedPrecondition},
	} {
		for _, text := range slices.Sorted(maps.Keys(list.changes)) {
			in := testInput(t)
			list.changes[text](&in)
			out, err := canonicalBuild(t, in)
			if !list.kind(err) || out != nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: got %v, %v, want an error that contains %q", list.name, out, err, text)
			}
		}
	}
}

// TestSandboxRefusals does the same for pods.
func TestSandboxRefusals(t *testing.T) {
	options := func(pod *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
		return pod.Linux.SecurityContext.NamespaceOptions
	}
	userns := func(ids ...*runtimeapi.IDMapping) func(*runtimeapi.PodSandboxConfig) {
		return func(pod *runtimeapi.PodSandboxConfig) {
			options(pod).UsernsOptions = &runtimeapi.UserNamespace{Uids: ids, Gids: ids}
		}
	}
	sysctl := func(name, value string) func(*runtimeapi.PodSandboxConfig) {
		return func(pod *runtimeapi.PodSandboxConfig) { pod.Linux.Sysctls = map[string]string{name: value} }
	}
	for text, change := range map[string]func(*runtimeapi.PodSandboxConfig){
		"metadata.name":             func(pod *runtimeapi.PodSandboxConfig) { pod.Metadata = nil },
		"metadata.name \"aaaa":      func(pod *runtimeapi.PodSandboxConfig) { pod.Metadata.Name = strings.Repeat("a", 256) },
		"metadata.namespace \"aaaa": func(pod *runtimeapi.PodSandboxConfig) { pod.Metadata.Namespace = strings.Repeat("a", 256) },
		"metadata.uid \"\\x00\"":    func(pod *runtimeapi.PodSandboxConfig) { pod.Metadata.Uid = "\x00" },
		"log_directory \"/aaaa":     func(pod *runtimeapi.PodSandboxConfig) { pod.LogDirectory = "/" + strings.Repeat("a", 256) },
		"cgroup_parent \"/aaaa":     func(pod *runtimeapi.PodSandboxConfig) { pod.Linux.CgroupParent = "/" + strings.Repeat("a", 256) },
		"hostname \"aaaa":           func(pod *runtimeapi.PodSandboxConfig) { pod.Hostname = strings.Repeat("a", 65) },
		"hostname \"a\\nb\"":        func(pod *runtimeapi.PodSandboxConfig) { pod.Hostname = "a\nb" },
		"log_directory":             func(pod *runtimeapi.PodSandboxConfig) { pod.LogDirectory = "rel" },
		"dns_config.servers[0]": func(pod *runtimeapi.PodSandboxConfig) {
			pod.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1\nx"}}
		},
		"port_mappings[0].host_port": func(pod *runtimeapi.PodSandboxConfig) {
			pod.PortMappings = []*runtimeapi.PortMapping{{HostPort: 70000}}
		},
		"port_mappings[0].container": func(pod *runtimeapi.PodSandboxConfig) { pod.PortMappings = []*runtimeapi.PortMapping{{HostPort: 7}} },
		"port_mappings[0].host_ip": func(pod *runtimeapi.PodSandboxConfig) {
			pod.PortMappings = []*runtimeapi.PortMapping{{HostPort: 7, ContainerPort: 7, HostIp: "x"}}
		},
		"port_mappings[0].protocol": func(pod *runtimeapi.PodSandboxConfig) {
			pod.PortMappings = []*runtimeapi.PortMapping{{HostPort: 7, ContainerPort: 7, Protocol: 7}}
		},
		"run_as_user -1": func(pod *runtimeapi.PodSandboxConfig) {
			pod.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: -1}
		},
		"run_as_group": func(pod *runtimeapi.PodSandboxConfig) {
			pod.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
		},
		"namespace_options.network": func(pod *runtimeapi.PodSandboxConfig) { options(pod).Network = 17 },
		"namespace_options.pid":     func(pod *runtimeapi.PodSandboxConfig) { options(pod).Pid = 17 },
		"userns_options.uids":       userns(&runtimeapi.IDMapping{Length: 1}, &runtimeapi.IDMapping{Length: 1}),
		"begins with ID 0":          userns(&runtimeapi.IDMapping{ContainerId: 1, Length: 1}),
		"userns_options.mode": func(pod *runtimeapi.PodSandboxConfig) {
			options(pod).UsernsOptions = &runtimeapi.UserNamespace{Mode: modeContainer}
		},
		"cgroup_parent":               func(pod *runtimeapi.PodSandboxConfig) { pod.Linux.CgroupParent = "/a/../../b" },
		"\"vm.swappiness\"":           sysctl("vm.swappiness", "1"),
		"\"kernel/../vm\"":            sysctl("kernel/../vm", "1"),
		"net.ipv4.tcp_syncookies \"0": sysctl("net.ipv4.tcp_syncookies", "0\n"),
		"network namespace of the node": func(pod *runtimeapi.PodSandboxConfig) {
			options(pod).Network = modeNode
			sysctl("net.ipv4.tcp_syncookies", "0")(pod)
		},
		"IPC namespace of the node": func(pod *runtimeapi.PodSandboxConfig) {
			options(pod).Ipc = modeNode
			sysctl("kernel.shmmax", "0")(pod)
		},
	} {
		pod := testInput(t).Pod
		change(pod)
		pod, _ = CanonicalSandbox(pod)
		if err := ValidateSandbox(pod); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want an invalid argument that contains %q", err, text)
		}
	}
}

// unsupported are requests that are accepted with a warning about the field.
var unsupported = map[string]change{
	"linux.security_context.selinux_options": func(in *Input) { sc(in).SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0"} },
	"linux.security_context.apparmor":        func(in *Input) { sc(in).Apparmor = &runtimeapi.SecurityProfile{} },
	"linux.security_context.seccomp": func(in *Input) {
		in.Host.Seccomp = false
		sc(in).Seccomp = &runtimeapi.SecurityProfile{}
	},
	"linux.resources.unified.memory.low": func(in *Input) {
		in.Host = testHost(cgroup.Hybrid)
		in.Config.Linux.Resources.Unified = map[string]string{"memory.low": "1"}
	},
	"linux.resources.unified.memory.swap.max": func(in *Input) {
		in.Host.SwapLimit = false
		in.Config.Linux.Resources.Unified = map[string]string{"memory.swap.max": "1"}
	},
	"linux.resources.hugepage_limits[0].page_size": func(in *Input) {
		in.Host.HugepageSizes = nil
		in.Config.Linux.Resources.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}
	},
	"linux.resources.oom_score_adj": func(in *Input) {
		in.Host.MinOOMScoreAdj = -10
		in.Config.Linux.Resources.OomScoreAdj = -11
	},
	"mounts[0].mount_options": func(in *Input) {
		ids := &runtimeapi.IDMapping{HostId: 100000, Length: 65536}
		in.Pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usernsOf(modePod, ids, ids)
		sc(in).RunAsUser, sc(in).RunAsGroup, sc(in).SupplementalGroups = nil, nil, nil
		in.Config.Mounts = []*runtimeapi.Mount{{HostPath: "/", ContainerPath: "/host", MountOptions: []string{"noexec", "noatime"}}}
	},
	"devices[0].host_path":    func(in *Input) { in.Config.Devices = []*runtimeapi.Device{{HostPath: filepath.Join(in.Rootfs, "etc")}} },
	"stop_signal":             func(in *Input) { in.Config.StopSignal = 999 },
	"StopSignal of the image": func(in *Input) { in.Image.StopSignal = "SIGNONSENSE" },
	"mounts[0].propagation":   withMount(&runtimeapi.Mount{HostPath: "/", Propagation: 9}),
}

// TestUnsupportedRequestsAreAccepted: what other runtimes accept is accepted, and the warning names the field.
func TestUnsupportedRequestsAreAccepted(t *testing.T) {
	for field, change := range unsupported {
		in := testInput(t)
		if out, err := canonicalBuild(t, in); err != nil || len(out.Warnings) > 0 {
			t.Fatalf("a plain request: got %v and %+v", err, out)
		}
		change(&in)
		out, err := canonicalBuild(t, in)
		if err != nil || len(out.Warnings) != 1 || out.Warnings[0].Field != field {
			t.Errorf("%s: got %v and %+v, want one warning about it", field, err, out)
		}
	}
}

// TestAccepted are requests that a careless check would refuse.
func TestAccepted(t *testing.T) {
	for name, change := range map[string]change{
		"apparmor default without AppArmor": func(in *Input) { sc(in).Apparmor = &runtimeapi.SecurityProfile{} },
		"deprecated apparmor default": func(in *Input) {
			sc(in).ApparmorProfile = "runtime/default" //nolint:staticcheck // the deprecated field still counts
		},
		"super privileged container without SELinux": func(in *Input) {
			sc(in).SelinuxOptions = &runtimeapi.SELinuxOption{Type: "spc_t", Level: "s0"}
		},
		"container without options in a pod of the node's network": func(in *Input) {
			in.Pod.Linux.SecurityContext.NamespaceOptions.Network = modeNode
			in.Namespaces.Net, in.Namespaces.UTS = "", ""
			sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{Pid: modeContainer}
		},
		"missing seccomp file of a privileged container": func(in *Input) {
			in.Pod.Linux.SecurityContext.Privileged, sc(in).Privileged = true, true
			localhost(in, "/nonexistent")
		},
		"stop signal of the future": func(in *Input) { in.Config.StopSignal = 999 },
		"propagation of the future": withMount(&runtimeapi.Mount{HostPath: "/", Propagation: 9}),
		"device directory": func(in *Input) {
			in.Config.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/n", HostPath: "/dev/net"}}
		},
		"name of a user that is a number": func(in *Input) { sc(in).RunAsUser, sc(in).RunAsUsername = nil, "1234:44" },
		"negative quota":                  withResources(&runtimeapi.LinuxContainerResources{CpuQuota: -7}),
		"limit on cgroups below":          withResources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"cgroup.max.depth": "1"}}),
		"image without any accounts":      func(in *Input) { in.Rootfs = filepath.Dir(in.Rootfs) },
	} {
		in := testInput(t)
		change(&in)
		if _, err := canonicalBuild(t, in); err != nil {
			t.Errorf("%s: got %v, want nil", name, err)
		}
	}
	pod := testInput(t).Pod
	pod.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net/ipv4/conf/eth0.1/forwarding": "1", "fs.mqueue.msg_max": "9"}
	if err := ValidateSandbox(pod); err != nil {
		t.Errorf("sysctls: got %v, want nil", err)
	}
}
