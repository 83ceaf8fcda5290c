package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "github.com/berth-runtime/berth/api/berth/v1"
)

func TestUsageErrors(t *testing.T) {
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"pod"}, exitUsage, `unknown command "pod"; did you mean pods?`},
		{[]string{"exec", "web"}, exitBerth, "berth exec takes a container and a command, got 1 argument"},
		{[]string{"run"}, exitBerth, "want an image"},
		{[]string{"ps", "--nope"}, exitUsage, "unknown flag: --nope"},
		{[]string{"run", "-d", "--rm", "x"}, exitBerth, "exclude each other"},
		{[]string{"logs", "--since", "noon", "x"}, exitUsage, `--since "noon": want a duration`},
		{[]string{"stop"}, exitUsage, "want pods, containers or --all"},
		{[]string{"--endpoint", "tcp://x", "ps"}, 1, "not a unix socket"},
	} {
		t.Run(strings.Join(tc.args, "_"), func(t *testing.T) {
			if len(tc.args) > 0 && tc.args[0] == "stop" {
				newCanned().berth(t, tc.args...).complains(t, tc.code, tc.want)
				return
			}
			berth(t, tc.args...).complains(t, tc.code, tc.want)
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"run", "--help"}, {"config"}} {
		if got := berth(t, args...); got.code != 0 || !strings.Contains(got.out, "Usage:") {
			t.Errorf("berth %v ends with %d and\n%s%s", args, got.code, got.out, got.err)
		}
	}
}

func TestCompletion(t *testing.T) {
	if got := newCanned().berth(t, "__complete", "exec", ""); !strings.Contains(got.out, "web\tpod in shop, ready\n") || !strings.Contains(got.out, "web/nginx\tcontainer, running\n") {
		t.Errorf("exec completes to\n%s", got.out)
	}
	if got := newCanned().berth(t, "__complete", "run", ""); !strings.Contains(got.out, "registry.example/pg:16\t999 B\n") {
		t.Errorf("run completes to\n%s", got.out)
	}
}

func TestSeconds(t *testing.T) {
	var d time.Duration
	s := newSeconds(&d, time.Minute)
	for text, want := range map[string]time.Duration{"0": 0, "10": 10 * time.Second, "1m30s": 90 * time.Second} {
		if err := s.Set(text); err != nil || d != want {
			t.Errorf("Set(%q) gives %v (%v), want %v", text, d, err, want)
		}
	}
	for _, text := range []string{"", "-1", "-5s", "soon", "99999999999"} {
		if err := s.Set(text); err == nil {
			t.Errorf("Set(%q) is accepted as %v", text, d)
		}
	}
}

func TestStop(t *testing.T) {
	c := newCanned()
	c.berth(t, "stop", "-t", "1500ms", "web").want(t, 0, "web")
	if want := "stop container c1c1 after 2\nstop container c2c2 after 2\nstop pod a1a1"; c.sorted() != want {
		t.Errorf("calls are\n%s\nwant\n%s", c.sorted(), want)
	}
	c = newCanned()
	c.berth(t, "stop", "-t", "0", "nginx", "nope", "e5").complains(t, 1, `no pod or container "nope"`)
	if want := "stop container c1c1 after 0\nstop container e5e5 after 0"; c.noted() != want {
		t.Errorf("calls are\n%s\nwant\n%s", c.noted(), want)
	}
}

func TestRemove(t *testing.T) {
	c := newCanned()
	c.berth(t, "rm", "web").complains(t, 1, "is running", "berth stop a1a1a1a1a1a1, or use --force")
	c.berth(t, "rm", "-f", "web", "e6").want(t, 0, "web\ne6")
	if want := "stop pod a1a1\nremove pod a1a1\nremove container e6e6"; c.noted() != want {
		t.Errorf("calls are\n%s\nwant\n%s", c.noted(), want)
	}
}

// A pod that `berth run` made goes with its container and its logs; the
// directory of another user does not.
func TestRemoveRun(t *testing.T) {
	c := newCanned()
	root := t.TempDir()
	own := filepath.Join(root, "default_solo_u")
	if err := os.Mkdir(own, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(own, "solo_0.log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pod := &runtimeapi.PodSandbox{
		Id: "f0f0", Metadata: &runtimeapi.PodSandboxMetadata{Name: "solo", Namespace: "default", Uid: "u"},
		Annotations: map[string]string{logDirAnnotation: own},
	}
	c.pods = append(c.pods, pod)
	c.containers = append(c.containers, &runtimeapi.Container{Id: "f1f1", PodSandboxId: "f0f0", Metadata: &runtimeapi.ContainerMetadata{Name: "solo"}})
	c.berth(t, "rm", "f1f1").want(t, 0, "f1f1")
	if want := "stop pod f0f0\nremove pod f0f0"; c.noted() != want {
		t.Errorf("calls are\n%s\nwant\n%s", c.noted(), want)
	}
	if _, err := os.Stat(own); !os.IsNotExist(err) {
		t.Errorf("logs are left: %v", err)
	}
	pod.Annotations[logDirAnnotation] = root
	if dir := runLogDir(pod); dir != "" {
		t.Errorf("the annotation of a pod names %s for removal", dir)
	}
}

func TestRmi(t *testing.T) {
	c := newCanned()
	c.containers = c.containers[:1]
	c.berth(t, "rmi", "nginx:1.27").complains(t, 1, "container c1c1c1c1c1c1 (nginx) uses it", "berth rm c1c1c1c1c1c1")
	c.berth(t, "rmi", "nope").complains(t, 1, "remove image nope: image not found", "berth images")
	c.berth(t, "rmi", "2222").want(t, 0, imgPG)
	c.berth(t, "rmi", "-f", "nginx:1.27").want(t, 0, imgNginx)
}

func TestPull(t *testing.T) {
	c := newCanned()
	c.progress = []*berthv1.WatchPullResponse{{Ref: "r", Stage: "downloading", Layers: []*berthv1.LayerProgress{
		{Digest: "sha256:" + strings.Repeat("7", 64), Done: 10, Total: 2000},
	}}}
	c.berth(t, "pull", "--creds", "me:secret:x", "registry.example/a").want(t, 0, imgNginx)
	if c.auth.GetUsername() != "me" || c.auth.GetPassword() != "secret:x" {
		t.Errorf("credentials arrived as %v", c.auth)
	}
	c.berth(t, "pull", "-o", "json", "a").want(t, 0, "{\n  \"a\": \""+imgNginx+"\"\n}")
	c.berth(t, "pull", "--creds", "me", "a").complains(t, 1, "no terminal to prompt for it")

	c.pullErr = status.Error(codes.Unknown, "RegistryUnavailable: dial tcp: refused")
	c.berth(t, "pull", "a").complains(t, 1, "berth: pull a: RegistryUnavailable: dial tcp: refused", "registry_config_dir")
	c.pullErr = status.Error(codes.PermissionDenied, "denied")
	c.berth(t, "pull", "a").complains(t, 1, "pull a: denied", "--creds USER")
}

func TestAuthFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	text := `{"auths":{"registry.example":{"auth":"bWU6cHc="},"https://index.docker.io/v1/":{"identitytoken":"t"},"bad.example":{"auth":"%"}}}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := fileCredentials(file, "registry.example/a:1"); err != nil || got.Auth != "bWU6cHc=" {
		t.Errorf("credentials %v (%v), want the auth of the registry", got, err)
	}
	if got, err := fileCredentials(file, "busybox"); err != nil || got.IdentityToken != "t" {
		t.Errorf("credentials %v (%v), want the token of Docker Hub", got, err)
	}
	for ref, want := range map[string]string{"other.example/a": "has no credentials for other.example", "bad.example/a": "is not base64"} {
		if _, err := fileCredentials(file, ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("credentials for %s give error %v, want %s", ref, err, want)
		}
	}
}

func TestLogs(t *testing.T) {
	c := newCanned()
	log := filepath.Join(t.TempDir(), "0.log")
	text := "2026-05-01T11:00:00Z stdout F one\n2026-05-01T11:59:00Z stderr F two\n2026-05-01T11:59:30Z stdout F three\n"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.statuses[idPGOld].LogPath = log
	got := c.berth(t, "logs", "e6")
	got.want(t, 0, "one\nthree")
	if got.err != "two\n" {
		t.Errorf("stderr is %q, want two", got.err)
	}
	c.berth(t, "logs", "-f", "--tail", "1", "e6").want(t, 0, "three")
	c.berth(t, "logs", "--since", "5m", "e6").want(t, 0, "three")
	if out := c.berth(t, "logs", "-t", "--tail", "1", "e6").out; !strings.HasSuffix(out, " three\n") || !strings.HasPrefix(out, "2026-0") {
		t.Errorf("with timestamps: %q", out)
	}
	c.berth(t, "logs", "-p", "postgres").want(t, 0, "one\nthree")
	c.berth(t, "logs", "-p", "nginx").complains(t, 1, "has no previous instance")
	c.berth(t, "logs", "nginx").complains(t, 1, "has no log path")
	c.statuses[idNginx].LogPath = log + ".gone"
	c.berth(t, "logs", "-p", "postgres").want(t, 0, "one\nthree")
	c.berth(t, "logs", "-p", "nginx").complains(t, 1, "has no previous instance")
	c.berth(t, "logs", "nginx").complains(t, 1, "does not exist")
}

func TestExecRefuses(t *testing.T) {
	c := newCanned()
	c.berth(t, "exec", "e6", "ls").complains(t, exitBerth, "is not running, it is exited", "berth logs e6e6e6e6e6e6")
	c.berth(t, "exec", "nope", "ls").complains(t, exitBerth, `no container "nope"`)
	c.berth(t, "exec", "nginx", "ls").complains(t, exitBerth, "run ls in container nginx", "cannot do that")
}

func TestConfig(t *testing.T) {
	got := berth(t, "config", "default")
	if got.code != 0 || !strings.Contains(got.out, "[network]") {
		t.Errorf("config default says (%d)\n%s", got.code, got.out)
	}
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte("root = \"/x\"\n[log]\nlevle = \"x\"\nformat = \"y\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got = berth(t, "config", "validate", file)
	got.complains(t, 1, file+":3: log.levle: is no key", file+":4: log.format:", "2 things are wrong in "+file, "berth config default")
	berth(t, "config", "show", "--config", file).complains(t, 1, "2 things are wrong")
	berth(t, "config", "validate", file+".none").complains(t, 1, "no such file", "berth config default")
	if err := os.WriteFile(file, []byte("root = \"/x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	berth(t, "config", "validate", file).want(t, 0, file+" is valid.")
	if got := berth(t, "config", "show", "--config", file, "-o", "json"); !strings.Contains(got.out, `"root": "/x"`) {
		t.Errorf("config show -o json says\n%s", got.out)
	}
	if got := berth(t, "config", "show", "--config", file); !strings.Contains(got.out, "root = \"/x\"") || strings.Contains(got.out, "#") {
		t.Errorf("config show says\n%s", got.out)
	}
}

// Without --endpoint and the variable, the daemon's own file says where it is.
func TestEndpoint(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte("listen = \"unix:///from/file\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	berth(t, "--config", file, "ps").complains(t, 1, "connect to unix:///from/file")
	berth(t, "--config", file, "--endpoint", "/from/flag", "ps").complains(t, 1, "connect to unix:///from/flag")
	a := &app{configFile: file}
	t.Setenv(endpointVariable, "unix:///from/env")
	if got, err := a.findEndpoint(); err != nil || got != "unix:///from/env" {
		t.Errorf("endpoint %q (%v), want that of the environment", got, err)
	}
}
