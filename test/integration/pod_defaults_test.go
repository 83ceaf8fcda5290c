package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/internal/spec"
	"github.com/berth-runtime/berth/test/harness"
	"github.com/berth-runtime/berth/test/imagefactory"
)

// eachHandlerWith runs a test with crun and with runc under a configuration.
func eachHandlerWith(t *testing.T, configure func(*config.Config), test func(t *testing.T, n *harness.Node)) {
	for _, handler := range []string{"crun", "runc"} {
		t.Run(handler, func(t *testing.T) {
			test(t, harness.Start(t, harness.Options{Handler: handler, Configure: configure}))
		})
	}
}

const (
	showLimits = "cat /proc/1/limits"
	showCaps   = "grep CapEff /proc/self/status"
	showPorts  = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
	showPing   = "cat /proc/sys/net/ipv4/ping_group_range"
	showShm    = "df -k /dev/shm | tail -1"
)

func sleeper() []string { return []string{"sleep", "1000"} }

func shell(c *harness.Container, script string) string {
	return strings.Join(strings.Fields(c.Output("sh", "-c", script)), " ")
}

func as(user, group int64) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: user}
		c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: group}
	}
}

func hostNetwork(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
}

// TestDefaultsOfContainers looks from inside at what containers get that ask for nothing: the same as with containerd, and
// limits that come from neither the service unit nor the process that started the supervisor. `berth inspect` shows it.
func TestDefaultsOfContainers(t *testing.T) {
	eachHandlerWith(t, nil, func(t *testing.T, n *harness.Node) {
		p := n.RunPod()
		c := p.Start(sleeper())
		for script, want := range map[string]string{
			showPorts: "0", showPing: "0 2147483647", showCaps: "CapEff: " + capabilityMask(t, config.Default().Pod.Capabilities),
			"df -k /dev/shm | tail -1 | awk '{print $2}'":                                                                   "65536",
			"grep ' /dev/shm ' /proc/self/mounts | cut -d' ' -f4 | tr ',' '\\n' | grep -E '^(nosuid|nodev|noexec)$' | sort": "nodev noexec nosuid",
		} {
			equal(t, script, shell(c, script), want)
		}
		for _, file := range []string{"hosts", "hostname", "resolv.conf"} {
			script := "grep ' /etc/" + file + " ' /proc/self/mounts | cut -d' ' -f4 | tr ',' '\\n' | grep -E '^(rw|nosuid|nodev|noexec)$' | sort"
			equal(t, script, shell(c, script), "nodev noexec nosuid rw")
		}
		limits := shell(c, showLimits)
		for name, want := range map[string]config.Ulimit{
			"Max open files": {Soft: 1024, Hard: 1 << 20}, "Max locked memory": {Soft: 8 << 20, Hard: 8 << 20},
			"Max core file size": {Soft: config.Unlimited, Hard: config.Unlimited}, "Max stack size": {Soft: 8 << 20, Hard: config.Unlimited},
		} {
			if text := name + " " + given(t, name, want); !strings.Contains(limits, text) {
				t.Errorf("limits lack %q: %s", text, limits)
			}
		}
		defaults := defaultsOf(t, n, c.ID)
		if !strings.Contains(defaults["ulimits"], "nofile=1024:") || defaults["capabilities"] == "" || defaults["timezone"] != "" {
			t.Errorf("berth inspect shows %v", defaults)
		}
		equal(t, "sysctls of the pod", defaultsOf(t, n, p.ID)["sysctls"],
			"net.ipv4.ip_unprivileged_port_start=0, net.ipv4.ping_group_range=0 2147483647")

		// The daemon's own limits change, and a new supervisor inherits them.
		for _, resource := range []int{unix.RLIMIT_MEMLOCK, unix.RLIMIT_CORE} {
			var old unix.Rlimit
			if err := unix.Prlimit(n.PID(), resource, nil, &old); err != nil {
				t.Fatal(err)
			}
			if err := unix.Prlimit(n.PID(), resource, &unix.Rlimit{Cur: 4096, Max: old.Max}, nil); err != nil {
				t.Fatal(err)
			}
		}
		wantShimName(t, n)
		n.KillShim()
		equal(t, "limits after the supervisor's restart", shell(p.Start(sleeper()), showLimits), limits)
		// Runc 1.1 may give a command the hard limit of open files as its soft one: the runtime of Go in it raises the limit.
		others := " | grep -v 'open files'"
		equal(t, "limits of a command after it", shell(c, "cat /proc/self/limits"+others), shell(c, showLimits+others))
		equal(t, "hard limit of open files of a command", shell(c, "ulimit -Hn"), strings.Fields(given(t, "Max open files", config.Ulimit{Hard: 1 << 20}))[1])

		host := n.RunPod(hostNetwork)
		h := host.Start(sleeper())
		for _, file := range []string{"ip_unprivileged_port_start", "ping_group_range"} {
			data, err := os.ReadFile("/proc/sys/net/ipv4/" + file)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, file+" of the host", shell(h, "cat /proc/sys/net/ipv4/"+file), strings.Join(strings.Fields(string(data)), " "))
		}
		equal(t, "sysctls of a pod in the network of the host", defaultsOf(t, n, host.ID)["sysctls"], "")
		mapped := n.RunPod(userNamespace)
		u := mapped.Start(sleeper(), likePod(mapped))
		equal(t, "ports in a user namespace", shell(u, showPorts), "0")
		equal(t, "sysctls in a user namespace", defaultsOf(t, n, mapped.ID)["sysctls"], "net.ipv4.ip_unprivileged_port_start=0")
		equal(t, "limits in a user namespace", shell(u, showLimits), limits)
	})
}

// given is a limit as /proc/self/limits shows it, as far as this process could give it.
func given(t *testing.T, name string, want config.Ulimit) string {
	t.Helper()
	resource := map[string]int{
		"Max open files": unix.RLIMIT_NOFILE, "Max locked memory": unix.RLIMIT_MEMLOCK, "Max core file size": unix.RLIMIT_CORE,
		"Max stack size": unix.RLIMIT_STACK,
	}[name]
	host, err := spec.ReadHost()
	if err != nil {
		t.Fatal(err)
	}
	most := unix.Rlimit{Max: config.Unlimited}
	if !strings.Contains(strings.Join(host.Capabilities, " "), "CAP_SYS_RESOURCE") {
		if err := unix.Getrlimit(resource, &most); err != nil {
			t.Fatal(err)
		}
	}
	if data, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil && resource == unix.RLIMIT_NOFILE {
		bound, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		most.Max = min(most.Max, bound)
	}
	text := func(value uint64) string {
		if value == config.Unlimited {
			return "unlimited"
		}
		return strconv.FormatUint(value, 10)
	}
	return text(min(want.Soft, most.Max)) + " " + text(min(want.Hard, most.Max))
}

// capabilityMask is what /proc/self/status shows for those of the capabilities that the daemon can give.
func capabilityMask(t *testing.T, names []string) string {
	t.Helper()
	host, err := spec.ReadHost()
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]int{
		"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_FSETID": 4, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7,
		"CAP_SETPCAP": 8, "CAP_NET_BIND_SERVICE": 10, "CAP_NET_RAW": 13, "CAP_SYS_CHROOT": 18, "CAP_MKNOD": 27, "CAP_AUDIT_WRITE": 29,
		"CAP_SETFCAP": 31,
	}
	mask := uint64(0)
	for _, name := range names {
		if strings.Contains(strings.Join(host.Capabilities, " ")+" ", name+" ") {
			mask |= 1 << numbers[name]
		}
	}
	return fmt.Sprintf("%016x", mask)
}

// defaultsOf is what berth inspect shows of the defaults of a pod or a container.
func defaultsOf(t *testing.T, n *harness.Node, id string) map[string]string {
	t.Helper()
	out, err := n.Berth(n.Context(), "inspect", id)
	if err != nil {
		t.Fatal(err)
	}
	var shown struct {
		Info struct {
			Defaults map[string]string `json:"defaults"`
		} `json:"info"`
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		t.Fatal(err)
	}
	return shown.Info.Defaults
}

// TestConfiguredDefaults sets each key of [pod] and looks at containers from inside. What the request or the image says wins.
func TestConfiguredDefaults(t *testing.T) {
	dir := t.TempDir()
	profile, hooks, ran := filepath.Join(dir, "seccomp.json"), filepath.Join(dir, "hooks"), filepath.Join(dir, "ran")
	write(t, profile, `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`)
	program := filepath.Join(dir, "hook.sh")
	write(t, program, "#!/bin/sh\necho \"$1\" >>"+ran+"\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, when := range map[string]string{
		"a-annotated": `"annotations": {"^hook\\.example/run$": "^yes"}`, "b-mounts": `"hasBindMounts": true`,
		"c-command": `"commands": ["^/bin/true$"]`, "d-never": `"always": false`,
	} {
		write(t, filepath.Join(hooks, name+".json"), fmt.Sprintf(
			`{"version": "1.0.0", "hook": {"path": %q, "args": ["hook.sh", %q]}, "when": {%s}, "stages": ["createRuntime"]}`, program, name, when))
	}
	configure := func(c *config.Config) {
		c.Pod.Sysctls = map[string]string{"net.core.somaxconn": "1234", "kernel.msgmax": "4444", "net.ipv4.conf.eth0.forwarding": "1"}
		c.Pod.Ulimits = []string{"nofile=512:600", "nproc=700"}
		c.Pod.Capabilities = []string{"CHOWN", "cap_kill"}
		c.Pod.Env = []string{"FROM_DEFAULT=a b", "FROM_IMAGE=default", "FROM_REQUEST=default"}
		c.Pod.Timezone, c.Pod.ShmSize = "Asia/Tokyo", "1MiB"
		c.Pod.SeccompProfile, c.Pod.UnsetSeccompProfile = profile, config.ProfileDefault
		c.Pod.DeviceOwner, c.Pod.PasswdEntry = true, true
		c.Pod.HooksDir = []string{hooks, filepath.Join(dir, "absent")}
	}
	eachHandlerWith(t, configure, func(t *testing.T, n *harness.Node) {
		if err := os.RemoveAll(ran); err != nil {
			t.Fatal(err)
		}
		image := imageWithEnvironment(t, n, "FROM_IMAGE=image")
		p := n.RunPod(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"kernel/msgmax": "5555"}
		})
		ofImage := func(c *runtimeapi.ContainerConfig) { c.Image.Image = image }
		c := p.Start(sleeper(), ofImage, as(1234, 555), func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "FROM_REQUEST", Value: []byte("request")}}
			c.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/mine", HostPath: "/dev/null", Permissions: "rwm"}}
			c.WorkingDir = "/tmp"
			c.Annotations = map[string]string{"hook.example/run": "yes, please"}
		})
		for script, want := range map[string]string{
			"cat /proc/sys/net/core/somaxconn":            "1234",
			"cat /proc/sys/kernel/msgmax":                 "5555",
			"cat /proc/sys/net/ipv4/conf/eth0/forwarding": "1",
			showPing: "1 0",
			"grep -E 'open files|processes' /proc/1/limits":      "Max processes 700 700 processes Max open files 512 600 files",
			"env | grep ^FROM_ | sort":                           "FROM_DEFAULT=a b FROM_IMAGE=image FROM_REQUEST=request",
			"date +%Z%z":                                         "JST+0900",
			"TZ=UTC0 date +%Z":                                   "UTC",
			"df -k /dev/shm | tail -1 | awk '{print $2}'":        "1024",
			"mkdir /tmp/x 2>/dev/null || echo refused":           "refused",
			"stat -c %u:%g /dev/mine":                            "1234:555",
			"tail -1 /etc/passwd":                                "1234:x:1234:555:1234 user:/tmp:/sbin/nologin",
			"whoami":                                             "1234",
			"grep CapBnd /proc/self/status":                      "CapBnd: 0000000000000021",
			"touch /etc/passwd 2>/dev/null || echo unchangeable": "unchangeable",
		} {
			equal(t, script, shell(c, script), want)
		}
		shown := defaultsOf(t, n, c.ID)
		for key, want := range map[string]string{
			"env": "FROM_DEFAULT", "timezone": "Asia/Tokyo", "unset_seccomp_profile": profile, "device_owner": "true",
			"passwd_entry": "1234:x:1234:555:1234 user:/tmp:/sbin/nologin", "capabilities": "CAP_CHOWN CAP_KILL", "hooks_dir": "a-annotated.json",
		} {
			equal(t, "default "+key, shown[key], want)
		}
		wantDefaultsYield(t, n, p)
		data, err := os.ReadFile(ran)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "hooks that ran", strings.Join(strings.Fields(string(data)), " "), "a-annotated b-mounts c-command")
		wantDefaultsInUserNamespace(t, n)
	})
}

// wantDefaultsYield starts containers whose requests say otherwise.
func wantDefaultsYield(t *testing.T, n *harness.Node, p *harness.Pod) {
	t.Helper()
	zone := filepath.Join(n.Dir(), "zone")
	write(t, zone, "no zone")
	mounts := p.Start(sleeper(), as(1234, 555), func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: zone, ContainerPath: "/etc/localtime"}, {HostPath: zone, ContainerPath: "/etc/passwd"}}
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_RAW"}, DropCapabilities: []string{"KILL"}}
	})
	for script, want := range map[string]string{
		"cat /etc/localtime": "no zone", "cat /etc/passwd": "no zone", "mkdir /tmp/x && echo made": "made",
		"grep CapBnd /proc/self/status": "CapBnd: 0000000000002001",
	} {
		equal(t, script, shell(mounts, script), want)
	}
	for _, key := range []string{"timezone", "passwd_entry", "unset_seccomp_profile", "seccomp_profile", "device_owner"} {
		equal(t, "default "+key+" that the request replaces", defaultsOf(t, n, mounts.ID)[key], "")
	}
	known := p.Start([]string{"/bin/true"})
	equal(t, "exit code", known.Exited().GetExitCode(), 0)
	equal(t, "entry of a user that the image has", defaultsOf(t, n, known.ID)["passwd_entry"], "")
}

func wantDefaultsInUserNamespace(t *testing.T, n *harness.Node) {
	t.Helper()
	p := n.RunPod(userNamespace)
	c := p.Start(sleeper(), likePod(p), as(1234, 555), func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/mine", HostPath: "/dev/null", Permissions: "rwm"}}
	})
	for script, want := range map[string]string{
		"date +%Z": "JST", "whoami": "1234", "stat -c %u:%g /etc/passwd": "0:0", "cat /proc/sys/net/core/somaxconn": "1234",
		"grep 'open files' /proc/1/limits": "Max open files 512 600 files", "df -k /dev/shm | tail -1 | awk '{print $2}'": "1024",
	} {
		equal(t, "in a user namespace: "+script, shell(c, script), want)
	}
}

func imageWithEnvironment(t *testing.T, n *harness.Node, entries ...string) string {
	t.Helper()
	image := imagefactory.Spec{Config: imagefactory.MinimalConfig()}
	image.Config.Env = entries
	built, err := imagefactory.BusyboxWith(image)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pull(n, n.Push("environment", built))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// wantShimName fails if tools such as pidof do not find the supervisor by its name.
func wantShimName(t *testing.T, n *harness.Node) {
	t.Helper()
	pid, err := n.ShimPID()
	if err != nil {
		t.Fatal(err)
	}
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || strings.TrimSpace(string(name)) != "berth-shim" {
		t.Errorf("the supervisor is called %q (%v), want berth-shim", name, err)
	}
}
