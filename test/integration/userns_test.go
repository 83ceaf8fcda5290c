package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/usermap"
)

// podRoot is what root of a pod with a user namespace is on the host.
const podRoot = 9 << 16

func podMapping() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: podRoot, Length: 65536}}
}

// userNamespace gives a pod a user namespace, as the kubelet asks for one.
func userNamespace(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
		Mode: runtimeapi.NamespaceMode_POD, Uids: podMapping(), Gids: podMapping(),
	}
}

// likePod gives a container the namespaces of its pod.
func likePod(p *harness.Pod) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	}
}

// mapped is a mount as the kubelet asks for it in a pod with a user namespace.
func mapped(host, container string, change ...func(*runtimeapi.Mount)) func(*runtimeapi.ContainerConfig) {
	m := &runtimeapi.Mount{HostPath: host, ContainerPath: container, UidMappings: podMapping(), GidMappings: podMapping()}
	for _, f := range change {
		f(m)
	}
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = append(c.Mounts, m) }
}

// TestUserNamespace: root of a pod is root in there and another user outside, wherever files come from; the namespaces of the
// pod obey it, and everything that one does with a container works.
func TestUserNamespace(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		volume := filepath.Join(n.Dir(), "volume")
		for path, uid := range map[string]int{volume: 0, volume + "/of33": 33} {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(path, uid, uid); err != nil {
				t.Fatal(err)
			}
		}
		file := filepath.Join(n.Dir(), "file")
		if err := os.WriteFile(file, []byte("given\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		p := n.RunPod(userNamespace, func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
			c.Linux.Sysctls = map[string]string{"net.ipv4.ping_group_range": "0 100", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "17"}
			c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.9.8.7"}}
		})
		readonly := func(m *runtimeapi.Mount) { m.Readonly = true }
		c := p.Start([]string{"sh", "-c", "trap 'exit 4' TERM; echo begun >/dev/stdout; while true; do sleep 0.05; done"},
			likePod(p), mapped(volume, "/volume"), mapped(file, "/etc/given", readonly), func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
				c.Linux.Resources.OomScoreAdj = 300
			})
		n.Eventually("a line that came through /dev/stdout is in the log", func() error { return logHas(c, "stdout F begun") })

		equal(t, "uid_map", strings.Join(strings.Fields(c.Output("cat", "/proc/self/uid_map")), " "), fmt.Sprintf("0 %d 65536", podRoot))
		equal(t, "gid_map", strings.Join(strings.Fields(c.Output("cat", "/proc/self/gid_map")), " "), fmt.Sprintf("0 %d 65536", podRoot))
		equal(t, "owner of the first process on the host", usermap.Owner(t, "/proc/"+containerPID(t, c)), podRoot)
		for what, want := range map[string]string{
			"/": "0 0", "/bin/busybox": "0 0", "/volume": "0 0", "/volume/of33": "33 33", "/etc/given": "0 0",
			"/dev/shm": "0 0", "/dev/mqueue": "0 0", "/etc/hosts": "0 0", "/etc/resolv.conf": "0 0", "/etc/hostname": "0 0", "/proc/1": "65535 65535",
		} {
			equal(t, "owner of "+what, c.Output("stat", "-c", "%u %g", what), want)
		}
		equal(t, "a file that only root may read", c.Output("cat", "/etc/given"), "given")
		c.Output("sh", "-c", "touch /volume/new /new && chown 44:44 /volume/new /new && echo x >/dev/shm/new && echo more >>/etc/hosts")
		equal(t, "owner on disk of what was made in the volume", usermap.Owner(t, volume+"/new"), 44)
		equal(t, "exit code of writing to a read-only mount", c.Exec("sh", "-c", "echo x >/etc/given").GetExitCode(), 1)
		c.Output("ip", "link", "set", "lo", "mtu", "9000")
		equal(t, "sysctl", strings.Join(strings.Fields(c.Output("cat", "/proc/sys/net/ipv4/ping_group_range")), " "), "0 100")
		equal(t, "sysctl", c.Output("cat", "/proc/sys/kernel/shm_rmid_forced"), "1")
		equal(t, "sysctl", c.Output("cat", "/proc/sys/fs/mqueue/msg_max"), "17")
		score, err := os.ReadFile("/proc/" + containerPID(t, c) + "/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "OOM score", strings.TrimSpace(string(score)), "300")
		equal(t, "host name", c.Output("hostname"), p.Config.GetHostname())
		if resolv := c.Output("cat", "/etc/resolv.conf"); !strings.Contains(resolv, "10.9.8.7") {
			t.Errorf("resolv.conf is %q", resolv)
		}
		user := c.Status().GetUser().GetLinux()
		if user.GetUid() != 0 || user.GetGid() != 0 {
			t.Errorf("user in the status is %v, want 0 and 0", user)
		}

		web(p)
		equal(t, "the pod's page from the host", fetch(n, t, net.JoinHostPort(p.IP(), "8080")), p.Config.GetHostname())
		other := p.Start([]string{"sleep", "1000"}, likePod(p), func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/kmsg", Permissions: "rw"}}
		})
		equal(t, "device at the path that another one has on the host", other.Output("stat", "-c", "%t:%T", "/dev/kmsg"), "1:5")
		equal(t, "a byte of that device", other.Output("sh", "-c", "head -c1 /dev/kmsg | od -An -tx1"), " 00")
		equal(t, "what the other container left in /dev/shm", other.Output("cat", "/dev/shm/new"), "x")
		equal(t, "owner of a process on the host", usermap.Owner(t, "/proc/"+containerPID(t, other)), podRoot+1000)
		equal(t, "user in the status", other.Status().GetUser().GetLinux().GetUid(), 1000)
		if processes := other.Output("ps"); !strings.Contains(processes, "trap 'exit 4'") {
			t.Errorf("processes of the pod are %q, want those of the first container among them", processes)
		}
		stats, err := n.Runtime.ContainerStats(n.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.ID})
		if err != nil || stats.GetStats().GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
			t.Errorf("figures are %v, %v", stats, err)
		}
		c.Stop(10)
		equal(t, "exit code", c.Status().GetExitCode(), 4)
		p.Remove()
		if _, err := os.Stat(volume + "/new"); err != nil {
			t.Errorf("what was in the volume went with the pod: %v", err)
		}
	})
}

// TestUserNamespaceTerminal: the terminal of a container and that of a command in it belong to the user namespace: they can be
// opened again by name, resized and read from, over each protocol.
func TestUserNamespaceTerminal(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		p := n.RunPod(userNamespace)
		const script = "until [ \"$(stty size </dev/tty)\" = '37 91' ]; do sleep 0.01; done; read word </dev/tty; echo I hear $word >/dev/stdout; exit 3\n"
		for _, protocol := range []string{"spdy", "websocket"} {
			c := p.Start([]string{"sh"}, likePod(p), func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin, c.StdinOnce = true, true, true })
			attach, err := n.Runtime.Attach(n.Context(), &runtimeapi.AttachRequest{ContainerId: c.ID, Tty: true, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			command := execURL(t, n, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"sh"}, Tty: true, Stdin: true, Stdout: true})
			for _, address := range []string{command, attach.GetUrl()} {
				var screen buffer
				size := make(sizes, 1)
				size <- remotecommand.TerminalSize{Width: 91, Height: 37}
				err := sessionOver(t, protocol, address, remotecommand.StreamOptions{
					Stdin: strings.NewReader(script + "you\n"), Stdout: &screen, Tty: true, TerminalSizeQueue: size,
				})
				close(size)
				var exit utilexec.CodeExitError
				if address == command && (!errors.As(err, &exit) || exit.Code != 3) || address != command && err != nil {
					t.Errorf("over %s the session ends with %v", protocol, err)
				}
				screen.contains(n, "I hear you")
			}
			equal(t, "exit code", c.Exited().GetExitCode(), 3)
		}
	})
}

// TestUserNamespaceOOM: the end for lack of memory is reported as ever.
func TestUserNamespaceOOM(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	p := n.RunPod(userNamespace)
	c := p.Start([]string{"sh", "-c", "dd if=/dev/zero of=/dev/null bs=40M"}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 15 << 20, MemorySwapLimitInBytes: 15 << 20}
	})
	s := c.Exited()
	equal(t, "reason", s.GetReason(), "OOMKilled")
	equal(t, "exit code", s.GetExitCode(), 137)
}

// TestUserNamespaceCNI: plugins wire a pod with a user namespace as they do others.
func TestUserNamespaceCNI(t *testing.T) {
	n := harness.Start(t, harness.Options{Conflist: harness.PortmapList("1.0.0")})
	port := freePort(t)
	p := n.RunPod(userNamespace, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: port}}
	})
	web(p)
	equal(t, "the pod's page from the host", fetch(n, t, net.JoinHostPort(p.IP(), "8080")), p.Config.GetHostname())
	equal(t, "the same through a host port", fetch(n, t, fmt.Sprintf("127.0.0.1:%d", port)), p.Config.GetHostname())
}

// TestUserNamespaceOfTheNode: a user namespace goes with every other namespace of the node.
func TestUserNamespaceOfTheNode(t *testing.T) {
	eachHandler(t, func(t *testing.T, n *harness.Node) {
		node := runtimeapi.NamespaceMode_NODE
		for name, options := range map[string]*runtimeapi.NamespaceOption{
			"network": {Network: node, Pid: runtimeapi.NamespaceMode_CONTAINER},
			"pid":     {Network: node, Pid: runtimeapi.NamespaceMode_POD},
			"all":     {Network: node, Pid: node, Ipc: node},
		} {
			p := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
				c.Hostname = ""
				c.Linux.SecurityContext.NamespaceOptions = options
			}, userNamespace)
			c := p.Start([]string{"sleep", "1000"}, likePod(p))
			uids := strings.Fields(c.Output("cat", "/proc/self/uid_map"))
			equal(t, name+": root on the host", strings.Join(uids, " "), fmt.Sprintf("0 %d 65536", podRoot))
			own, err := os.Readlink("/proc/self/ns/net")
			if err != nil {
				t.Fatal(err)
			}
			equal(t, name+": network namespace", c.Output("readlink", "/proc/self/ns/net"), own)
			equal(t, name+": devices of the network", c.Exec("ls", "/sys/class/net/lo").GetExitCode(), 0)
			if answer := c.Exec("ip", "link", "set", "lo", "mtu", "65536"); answer.GetExitCode() == 0 {
				t.Errorf("%s: root of the pod has changed the network of the node", name)
			}
		}
		s, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{})
		if err != nil || !s.GetFeatures().GetUserNamespacesHostNetwork() {
			t.Errorf("features are %v, %v, want user namespaces on the host's network", s.GetFeatures(), err)
		}
		for _, h := range s.GetRuntimeHandlers() {
			equal(t, fmt.Sprintf("user namespaces of handler %q", h.GetName()), h.GetFeatures().GetUserNamespaces(), h.GetName() != "runsc")
		}
	})
}

// TestUserNamespaceMounts: a mount keeps what the request says of it beside its owners, and one that cannot be mapped is
// refused by name, before anything runs. One that is shared too becomes a slave, with a warning.
func TestUserNamespaceMounts(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	p := n.RunPod(userNamespace)
	create := func(change ...func(*runtimeapi.ContainerConfig)) error {
		_, err := p.Create(n.ContainerConfig([]string{"sleep", "1000"}, change...))
		return err
	}
	wantError(t, create(mapped("/proc", "/host/proc")), codes.FailedPrecondition, "mounts[0].uidMappings", "/proc", "cannot be idmapped")
	wantError(t, create(mapped("/proc/nonexistent", "/m")), codes.InvalidArgument, "mounts[0].host_path", "/proc/nonexistent")
	dir := filepath.Join(n.Dir(), "dir")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	shared, err := p.Create(n.ContainerConfig([]string{"sleep", "1000"}, mapped(dir, "/m", func(m *runtimeapi.Mount) {
		m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	})))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "warnings of a mount that is mapped and shared", fields(containerWarnings(t, n, shared.ID)), "mounts[0].propagation")
	wantError(t, create(func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
	}), codes.InvalidArgument, "userns_options.mode", "NODE")

	// A mount that others may need, with a mapping of its own, and one in a pod that has no user namespace.
	c := p.Start([]string{"sleep", "1000"}, mapped(dir, "/other", func(m *runtimeapi.Mount) {
		m.UidMappings = []*runtimeapi.IDMapping{{HostId: podRoot + 7, Length: 10}}
		m.GidMappings = m.UidMappings
	}), mapped(dir, "/slave", func(m *runtimeapi.Mount) { m.MountOptions = []string{"noexec"} }))
	equal(t, "owner with a mapping of its own", c.Output("stat", "-c", "%u", "/other"), "7")
	equal(t, "owner with that of the pod", c.Output("stat", "-c", "%u", "/slave"), "0")
	plain := n.RunPod().Start([]string{"sleep", "1000"}, mapped(dir, "/data"))
	equal(t, "owner in a pod without a user namespace", plain.Output("stat", "-c", "%u", "/data"), fmt.Sprint(podRoot))
}

// TestUserNamespaceRefusals: what is not one mapping that begins with root is refused with field and reason, and leaves
// nothing.
func TestUserNamespaceRefusals(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	one := podMapping()[0]
	for name, c := range map[string]struct {
		options *runtimeapi.UserNamespace
		words   []string
	}{
		"two":       {&runtimeapi.UserNamespace{Uids: append(podMapping(), one), Gids: podMapping()}, []string{"userns_options.uids", "exactly one"}},
		"none":      {&runtimeapi.UserNamespace{}, []string{"userns_options.uids", "exactly one"}},
		"empty":     {&runtimeapi.UserNamespace{Uids: podMapping(), Gids: []*runtimeapi.IDMapping{{HostId: podRoot}}}, []string{"userns_options.gids", "begins with ID 0"}},
		"unequal":   {&runtimeapi.UserNamespace{Uids: podMapping(), Gids: []*runtimeapi.IDMapping{{HostId: 1, Length: 9}}}, []string{"userns_options.gids", "same mapping"}},
		"container": {&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER}, []string{"userns_options.mode", "CONTAINER"}},
		"target":    {&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_TARGET}, []string{"userns_options.mode", "TARGET"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig(func(p *runtimeapi.PodSandboxConfig) {
				p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = c.options
			})})
			wantError(t, err, codes.InvalidArgument, c.words...)
		})
	}
	if left := sandboxes(t, n, nil); len(left) > 0 {
		t.Errorf("refused pods are listed: %v", left)
	}
}

// TestUserNamespaceKill: the daemon is killed at many moments while a pod with a user namespace is made and removed, and
// the supervisor with it. A pod that runs lives on; nothing is left of the others, which the leak check sees.
func TestUserNamespaceKill(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	dir := filepath.Join(n.Dir(), "dir")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	steady := n.RunPod(userNamespace)
	c := steady.Start([]string{"sleep", "1000"}, mapped(dir, "/data"))
	for i := range 12 {
		done := make(chan struct{})
		sandbox := n.PodConfig(userNamespace, func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		})
		container := n.ContainerConfig([]string{"sleep", "1000"}, mapped(dir, "/data"), func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions()
		})
		go func() {
			defer close(done)
			makePod(n, sandbox, container)
		}()
		// Neither early nor late in particular: every run kills at other moments.
		time.Sleep(time.Duration(i*13) * time.Millisecond)
		if i%4 == 3 {
			n.KillShim()
		}
		n.KillDaemon()
		<-done
		n.Eventually("the pod can be made after all", func() error { return makeAgain(n, sandbox) })
		equal(t, "owner of the volume in the pod that lives on", c.Output("stat", "-c", "%u", "/data"), "0")
		for _, id := range sandboxes(t, n, nil) {
			if id == steady.ID {
				continue
			}
			if _, err := n.Runtime.RemovePodSandbox(n.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
				t.Errorf("remove pod: %v", err)
			}
		}
	}
	late := steady.Start([]string{"sleep", "1000"}, mapped(dir, "/data"))
	equal(t, "owner of the volume in a later container", late.Output("stat", "-c", "%u", "/data"), "0")
	steady.Remove()
}
