package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/harness"
)

// crictlDeadline bounds one call of crictl.
const crictlDeadline = time.Minute

// crictlVariable is the environment variable that tells the isolated test binary where crictl is.
const crictlVariable = "BERTH_TEST_CRICTL"

// crictlProgram builds crictl, which is pinned in tools/go.mod, unless the build cache has it.
var crictlProgram = sync.OnceValues(func() (string, error) {
	if program := os.Getenv(crictlVariable); program != "" {
		return program, nil
	}
	cmd := exec.Command("go", "tool", "-modfile=../../tools/go.mod", "-n", "crictl")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build crictl: %w: %s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
})

func crictl(ctx context.Context, t *testing.T, n *harness.Node, args ...string) *exec.Cmd {
	t.Helper()
	program, err := crictlProgram()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(n.Dir(), "crictl.yaml")
	if _, err := os.Stat(config); os.IsNotExist(err) {
		if err := os.WriteFile(config, []byte("timeout: 30\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	endpoint := n.Config.Listen
	cmd := exec.CommandContext(ctx, program, append([]string{"--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "30s"}, args...)...)
	cmd.Env = append(os.Environ(), "CRI_CONFIG_FILE="+config)
	return cmd
}

// crictlUser is a user of crictl. What was used is noted.
type crictlUser struct {
	t    *testing.T
	n    *harness.Node
	ctx  context.Context
	used map[string]bool
}

// run runs a subcommand, which must succeed, and returns what it writes.
func (u *crictlUser) run(args ...string) string {
	u.t.Helper()
	return u.pipe("", args...)
}

func (u *crictlUser) pipe(stdin string, args ...string) string {
	u.t.Helper()
	out, err := u.try(stdin, args...)
	if err != nil {
		u.t.Errorf("crictl %v: %v", args, err)
	}
	return out
}

func (u *crictlUser) try(stdin string, args ...string) (string, error) {
	u.t.Helper()
	u.used[args[0]] = true
	cmd := crictl(u.ctx, u.t, u.n, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return stdout.String(), nil
}

// has runs a subcommand and looks for words in what it writes.
func (u *crictlUser) has(words string, args ...string) {
	u.t.Helper()
	if out := u.run(args...); !strings.Contains(out, words) {
		u.t.Errorf("crictl %v writes %q, want %q in it", args, out, words)
	}
}

// hasNot is the opposite.
func (u *crictlUser) hasNot(words string, args ...string) {
	u.t.Helper()
	if out := u.run(args...); strings.Contains(out, words) {
		u.t.Errorf("crictl %v writes %q, with %q in it", args, out, words)
	}
}

// json runs a subcommand and reads what it writes.
func (u *crictlUser) json(into any, args ...string) {
	u.t.Helper()
	out := u.run(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		u.t.Errorf("read what crictl %v writes: %v: %s", args, err, out)
	}
}

// file writes a request for crictl.
func (u *crictlUser) file(name string, config proto.Message) string {
	u.t.Helper()
	data, err := json.Marshal(config)
	if err != nil {
		u.t.Fatal(err)
	}
	path := filepath.Join(u.n.Dir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		u.t.Fatal(err)
	}
	return path
}

// TestEveryCrictlCommand goes through every subcommand of the tool of the Kubernetes project, as a user would who has
// nothing else, and looks at what each has done.
func TestEveryCrictlCommand(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "runc"}) // Debian's crun is built without CRIU
	ctx, cancel := context.WithTimeout(t.Context(), 10*crictlDeadline)
	defer cancel()
	u := &crictlUser{t: t, n: n, ctx: ctx, used: map[string]bool{}}
	u.node()
	events, endEvents := u.follow("events", "-o", "json")
	u.images()
	podID, id := u.life()
	u.figures(podID, id)
	u.streams()
	n.Eventually("crictl events has shown the start of the container", func() error {
		if got := events.String(); !strings.Contains(got, id) || !strings.Contains(got, "CONTAINER_STARTED_EVENT") {
			return fmt.Errorf("it shows %q", got)
		}
		return nil
	})
	endEvents()
	u.checkpoint(id)
	u.end(podID, id)
	for _, command := range u.commands() {
		if !u.used[command] {
			t.Errorf("crictl %s was not tried", command)
		}
	}
}

// commands are those that the help of crictl lists.
func (u *crictlUser) commands() []string {
	u.t.Helper()
	help := u.run("help")
	_, list, _ := strings.Cut(help, "COMMANDS:")
	list, _, _ = strings.Cut(list, "GLOBAL OPTIONS:")
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^   ([a-z-]+)`).FindAllStringSubmatch(list, -1) {
		names = append(names, m[1])
	}
	if len(names) < 30 {
		u.t.Errorf("crictl has the subcommands %v, which cannot be all", names)
	}
	return names
}

// node asks about the node.
func (u *crictlUser) node() {
	u.t.Helper()
	u.has("berth", "version")
	u.has("RuntimeReady", "info")
	u.has("cgroup driver", "runtime-config")
	u.run("update-runtime-config", "--pod-cidr", "10.99.0.0/16")
	u.has("crictl", "completion", "bash")
	u.run("config", "--set", "timeout=7")
	u.has("7", "config", "--get", "timeout")
}

func (u *crictlUser) images() {
	u.t.Helper()
	u.has("sha256:", "pull", u.n.Image)
	u.has("busybox", "images")
	u.has(u.n.Image, "inspecti", u.n.Image)
	var usage struct {
		Status struct {
			ImageFilesystems []struct {
				FsID      struct{ Mountpoint string } `json:"fsId"`
				UsedBytes struct{ Value string }
			}
		}
	}
	u.json(&usage, "imagefsinfo")
	if fs := usage.Status.ImageFilesystems; len(fs) != 1 || !strings.HasPrefix(fs[0].FsID.Mountpoint, u.n.Config.Root) || fs[0].UsedBytes.Value == "" {
		u.t.Errorf("imagefsinfo says %+v", usage)
	}
}

// life makes a pod and a container, step by step, and another in one step, which it removes.
func (u *crictlUser) life() (podID, id string) {
	u.t.Helper()
	pod := u.n.PodConfig()
	if err := os.MkdirAll(pod.GetLogDirectory(), 0o755); err != nil {
		u.t.Fatal(err)
	}
	podFile := u.file("pod.json", pod)
	container := u.n.ContainerConfig([]string{"sh", "-c", "echo said; exec sleep 1000"})
	containerFile := u.file("container.json", container)
	podID = strings.TrimSpace(u.run("runp", podFile))
	u.has(pod.GetMetadata().GetName(), "pods", "--state", "ready")
	u.has("SANDBOX_READY", "inspectp", podID)
	id = strings.TrimSpace(u.run("create", podID, containerFile, podFile))
	u.has("CONTAINER_CREATED", "inspect", id)
	u.run("start", id)
	u.has(container.GetMetadata().GetName(), "ps")
	u.has("CONTAINER_RUNNING", "inspect", id)
	u.n.Eventually("crictl logs shows what was said", func() error {
		out, err := u.try("", "logs", id)
		if err == nil && out != "said\n" {
			err = fmt.Errorf("it shows %q", out)
		}
		return err
	})
	u.run("update", "--cpu-quota", "20000", "--cpu-period", "100000", id)
	u.has(`"cpuQuota": "20000"`, "inspect", id)

	other := u.n.PodConfig()
	one := u.n.ContainerConfig([]string{"sleep", "1000"})
	if err := os.MkdirAll(other.GetLogDirectory(), 0o755); err != nil {
		u.t.Fatal(err)
	}
	ran := strings.TrimSpace(u.run("run", u.file("one.json", one), u.file("other.json", other)))
	u.has("CONTAINER_RUNNING", "inspect", ran)
	u.run("stop", "--timeout", "0", ran)
	u.has("CONTAINER_EXITED", "inspect", ran)
	u.run("rm", ran)
	u.hasNot(ran, "ps", "-a", "--no-trunc")
	return podID, id
}

// figures reads statistics and metrics.
func (u *crictlUser) figures(podID, id string) {
	u.t.Helper()
	var stats struct {
		Stats []struct {
			Attributes struct{ ID string }
		}
	}
	u.json(&stats, "stats")
	if len(stats.Stats) != 1 || stats.Stats[0].Attributes.ID != id {
		u.t.Errorf("stats says %+v, want one of %s", stats, id)
	}
	u.has(podID, "statsp", "-o", "json")
	u.has("container_cpu_usage_seconds_total", "metricdescs")
	u.has(podID, "metricsp")
}

// streams executes, attaches and forwards a port, over both transports.
func (u *crictlUser) streams() {
	u.t.Helper()
	p := u.n.RunPod()
	web(p)
	fetch(u.n, u.t, net.JoinHostPort(p.IP(), "8080")) // it listens
	for _, transport := range []string{"spdy", "websocket"} {
		c := p.Start([]string{"sh"}, func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
		u.has(p.Config.GetHostname(), "exec", "--sync", c.ID, "hostname")
		u.has("over a stream", "exec", "--transport", transport, c.ID, "echo", "over a stream")
		if out := u.pipe("through\n", "exec", "--transport", transport, "-i", c.ID, "cat"); out != "through\n" {
			u.t.Errorf("crictl exec over %s writes %q", transport, out)
		}
		// The shell ends with its input, and the container with it.
		if out := u.pipe("echo attached\n", "attach", "--transport", transport, "-i", c.ID); out != "attached\n" {
			u.t.Errorf("crictl attach over %s writes %q", transport, out)
		}
		c.Exited()
		forwarded, end := u.follow("port-forward", "--transport", transport, p.ID, ":8080")
		var port int
		u.n.Eventually("crictl port-forward listens", func() error {
			line, err := bufio.NewReader(strings.NewReader(forwarded.String())).ReadString('\n')
			if err == nil {
				_, err = fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d ->", &port)
			}
			return err
		})
		equal(u.t, "the page over "+transport, fetch(u.n, u.t, fmt.Sprintf("127.0.0.1:%d", port)), p.Config.GetHostname())
		end()
	}
}

// follow starts a subcommand that goes on until it is ended.
func (u *crictlUser) follow(args ...string) (output *buffer, end func()) {
	u.t.Helper()
	u.used[args[0]] = true
	cmd := crictl(u.ctx, u.t, u.n, args...)
	output = &buffer{}
	cmd.Stdout = io.Writer(output)
	if err := cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			u.t.Error(err)
		}
		_ = cmd.Wait() // it ends by the signal
	})
	u.t.Cleanup(end)
	return output, end
}

// checkpoint writes the container down, or learns why that cannot be done on this kernel.
func (u *crictlUser) checkpoint(id string) {
	u.t.Helper()
	archive := filepath.Join(u.n.Dir(), "checkpoint.tar")
	_, err := u.try("", "checkpoint", "--export", archive, id)
	_, statErr := os.Stat(archive)
	switch {
	case err == nil && statErr != nil:
		u.t.Errorf("crictl checkpoint succeeds, but: %v", statErr)
	case err != nil && !strings.Contains(strings.ToLower(err.Error()), "criu"):
		u.t.Errorf("crictl checkpoint: %v, want it to name CRIU", err)
	case err != nil && statErr == nil:
		u.t.Errorf("crictl checkpoint fails, but leaves %s", archive)
	}
	u.has("CONTAINER_RUNNING", "inspect", id)
}

// end stops and removes everything.
func (u *crictlUser) end(podID, id string) {
	u.t.Helper()
	u.run("stopp", podID)
	u.has("SANDBOX_NOTREADY", "inspectp", podID)
	u.run("rm", id)
	u.run("rmp", podID)
	u.hasNot(podID, "pods", "--no-trunc")
	u.run("rmp", "-f", "-a")
	u.run("rmi", u.n.Image)
	u.hasNot("busybox", "images")
}
