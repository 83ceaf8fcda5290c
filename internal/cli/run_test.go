package cli

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const cannedOutput = "2026-05-01T11:00:00Z stdout F out\n2026-05-01T11:00:00Z stderr F err\n2026-05-01T11:00:00Z stdout P end\n"

func TestRun(t *testing.T) {
	c := newCanned()
	c.output, c.exitCode = cannedOutput, 3
	logs := t.TempDir()
	got := c.berth(t, "run", "--rm", "--log-dir", logs, "--name", "job", "nginx:1.27", "sh", "-c", "exit 3")
	got.want(t, 3, "out\nend")
	if got.err != "err\n" {
		t.Errorf("stderr is %q, want err", got.err)
	}
	want := "run pod\ncreate container\nstart container\nstop pod feed\nremove pod feed"
	if c.noted() != want {
		t.Errorf("calls are\n%s\nwant\n%s", c.noted(), want)
	}
	if left, err := os.ReadDir(logs); err != nil || len(left) > 0 {
		t.Errorf("logs are left: %v (%v)", left, err)
	}
	config := c.container.Config
	if config.Image.Image != imgNginx || config.Image.UserSpecifiedImage != "nginx:1.27" || strings.Join(config.Args, " ") != "sh -c exit 3" {
		t.Errorf("container is made with %v %v", config.Image, config.Args)
	}
}

func TestRunPullsAndDetaches(t *testing.T) {
	c := newCanned()
	c.berth(t, "run", "-d", "--log-dir", t.TempDir(), "fresh").want(t, 0, "beef")
	if !strings.HasPrefix(c.noted(), "pull fresh\nrun pod\n") {
		t.Errorf("calls are\n%s", c.noted())
	}
	if name := c.pod.Config.Metadata.Name; name == "" || c.pod.Config.Metadata.Uid == "" || c.pod.Config.Hostname != name {
		t.Errorf("pod is made as %v with host name %q", c.pod.Config.Metadata, c.pod.Config.Hostname)
	}
	newCanned().berth(t, "run", "--pull", "never", "fresh").complains(t, exitBerth, "image fresh not found on this node", "berth pull fresh")
}

func TestRunNameTaken(t *testing.T) {
	c := newCanned()
	c.berth(t, "run", "--name", "web", "--namespace", "shop", "nginx:1.27").
		complains(t, exitBerth, "name web is in use by pod a1a1a1a1a1a1, which is ready", "berth rm a1a1a1a1a1a1")
	if c.noted() != "" {
		t.Errorf("something was asked of the runtime: %s", c.noted())
	}
}

// A container that does not start leaves nothing, and the code says why.
func TestRunCleansUp(t *testing.T) {
	c := newCanned()
	c.startErr = status.Error(codes.Unknown, `exec: "nope": executable file not found in $PATH`)
	logs := t.TempDir()
	c.berth(t, "run", "-d", "--log-dir", logs, "--name", "job", "nginx:1.27", "nope").
		complains(t, exitNotFound, "start container job", "executable file not found")
	if !strings.HasSuffix(c.noted(), "stop pod feed\nremove pod feed") {
		t.Errorf("calls are\n%s", c.noted())
	}
	if left, err := os.ReadDir(logs); err != nil || len(left) > 0 {
		t.Errorf("logs are left: %v (%v)", left, err)
	}
}

func TestRunFlags(t *testing.T) {
	c := newCanned()
	dir := t.TempDir()
	t.Setenv("BERTH_TEST_OWN", "mine")
	c.berth(t, "run", "-d", "--log-dir", t.TempDir(), "--name", "My_Job", "--runtime", "crun",
		"-e", "A=1=2", "-e", "BERTH_TEST_OWN", "-e", "BERTH_TEST_UNSET", "-v", dir+":/data:rro,rslave", "-p", "127.0.0.1:8080:80/udp",
		"-m", "64m", "--cpus", "0.5", "-u", "1000:50", "-w", "/tmp", "--entrypoint", "/init", "--dns", "1.1.1.1",
		"--cap-add", "cap_net_admin", "--security-opt", "no-new-privileges", "--read-only", "-l", "a=b", "--sysctl", "net.x=1",
		"nginx:1.27", "-e", "arg").want(t, 0, "beef")
	pod, ctr := c.pod.Config, c.container.Config
	if c.pod.RuntimeHandler != "crun" || pod.Hostname != "my-job" || pod.Labels["a"] != "b" || pod.Linux.Sysctls["net.x"] != "1" ||
		pod.DnsConfig.Servers[0] != "1.1.1.1" {
		t.Errorf("pod is %v", pod)
	}
	p := pod.PortMappings[0]
	if p.HostIp != "127.0.0.1" || p.HostPort != 8080 || p.ContainerPort != 80 || p.Protocol != runtimeapi.Protocol_UDP {
		t.Errorf("port is %v", p)
	}
	env := ""
	for _, kv := range ctr.Envs {
		env += kv.Key + "=" + string(kv.Value) + " "
	}
	if env != "A=1=2 BERTH_TEST_OWN=mine " || ctr.WorkingDir != "/tmp" || ctr.Command[0] != "/init" || strings.Join(ctr.Args, " ") != "-e arg" {
		t.Errorf("container is %v", ctr)
	}
	m, r, sc := ctr.Mounts[0], ctr.Linux.Resources, ctr.Linux.SecurityContext
	if m.HostPath != dir || !m.RecursiveReadOnly || m.Propagation != runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER {
		t.Errorf("mount is %v", m)
	}
	if r.MemoryLimitInBytes != 64<<20 || r.CpuQuota != 50_000 || r.CpuPeriod != 100_000 {
		t.Errorf("resources are %v", r)
	}
	if sc.RunAsUser.Value != 1000 || sc.RunAsGroup.Value != 50 || !sc.NoNewPrivs || !sc.ReadonlyRootfs ||
		sc.Capabilities.AddCapabilities[0] != "NET_ADMIN" || sc.NamespaceOptions.Pid != runtimeapi.NamespaceMode_CONTAINER ||
		sc.Seccomp.ProfileType != runtimeapi.SecurityProfile_RuntimeDefault || len(sc.MaskedPaths) == 0 {
		t.Errorf("security context is %v", sc)
	}
}

func TestRunRefusesFlags(t *testing.T) {
	for _, tc := range []struct {
		name, flag, value, want string
	}{
		{"memory", "-m", "lots", `--memory "lots": want a size such as 512m`},
		{"little_memory", "-m", "1k", "too little to run a process"},
		{"swap", "--memory-swap", "5x", "--memory-swap"},
		{"volume", "-v", "/nowhere:/x", "no such file or directory; create it first"},
		{"named_volume", "-v", "data:/x", "named volumes are not supported"},
		{"volume_target", "-v", "/tmp:x", `target "x" is relative`},
		{"volume_option", "-v", "/tmp:/x:fast", `unknown option "fast"`},
		{"port", "-p", "80:99999", `"99999" is not a port`},
		{"port_protocol", "-p", "80:80/icmp", "want tcp, udp or sctp"},
		{"port_address", "-p", "host:80:80", `"host" is not an IP address`},
		{"env", "-e", "=x", "want NAME=VALUE"},
		{"user", "-u", ":5", "want UID, UID:GID or NAME"},
		{"group", "-u", "root:wheel", "want a numeric GID"},
		{"device", "--device", "fuse", "--device"},
		{"label", "-l", "x", "want KEY=VALUE"},
		{"security", "--security-opt", "magic", "want no-new-privileges"},
		{"network", "--network", "br0", "want host"},
		{"name", "--name", "a/b", `--name "a/b": want`},
		{"pull", "--pull", "often", "want missing, always or never"},
		{"group_add", "--group-add", "wheel", "want a numeric GID"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCanned()
			c.berth(t, "run", tc.flag, tc.value, "nginx:1.27").complains(t, exitBerth, tc.want)
			if c.noted() != "" {
				t.Errorf("something was asked of the runtime: %s", c.noted())
			}
		})
	}
}

func TestParsePort(t *testing.T) {
	for in, want := range map[string]string{
		"80":                "0.0.0.0/TCP 80:80",
		"8080:80":           "0.0.0.0/TCP 8080:80",
		"[::1]:53:53/udp":   "::1/UDP 53:53",
		"10.0.0.1:1:2/sctp": "10.0.0.1/SCTP 1:2",
	} {
		m, err := parsePort(in)
		if err != nil {
			t.Errorf("parsePort(%q): %v", in, err)
			continue
		}
		host := m.HostIp
		if host == "" {
			host = "0.0.0.0"
		}
		if got := host + "/" + m.Protocol.String() + " " + itoa(m.HostPort) + ":" + itoa(m.ContainerPort); got != want {
			t.Errorf("parsePort(%q) = %s, want %s", in, got, want)
		}
	}
}

func itoa(n int32) string { return strconv.Itoa(int(n)) }

func TestEnvFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\nA=1\n\n  B=x y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readEnvFile(file)
	if err != nil || strings.Join(got, "|") != "A=1|B=x y" {
		t.Errorf("readEnvFile = %q (%v)", got, err)
	}
}

func TestMakeName(t *testing.T) {
	for range 100 {
		if err := checkName("name", makeName()); err != nil {
			t.Fatal(err)
		}
	}
}

// The output of a session continues that of the log without a hole.
func TestSeam(t *testing.T) {
	for _, tc := range []struct{ name, missing, first, want string }{
		{"nothing_missing", "", "new", "new"},
		{"all_missing", "a\r\nb\r\n", "/ # ", "a\r\nb\r\n/ # "},
		{"overlap", "a\r\nb\r\n", "b\r\nc", "a\r\nb\r\nc"},
		{"log_ahead", "a\r\nb\r\nc\r\n", "b\r\n", "a\r\nb\r\n"},
		{"the_same", "a\r\n", "a\r\n", "a\r\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			s := &seam{out: &out, missing: func() ([]byte, error) { return []byte(tc.missing), nil }}
			if _, err := s.Write([]byte(tc.first)); err != nil {
				t.Fatal(err)
			}
			if out.String() != tc.want {
				t.Errorf("shown is %q, want %q", out.String(), tc.want)
			}
			if _, err := s.Write([]byte("+")); err != nil || out.String() != tc.want+"+" {
				t.Errorf("shown later is %q (%v)", out.String(), err)
			}
		})
	}
}
