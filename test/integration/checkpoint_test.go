package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/checkpoint"
	"github.com/berth-runtime/berth/test/criu"
	"github.com/berth-runtime/berth/test/harness"
)

// counting writes a file, removes one of the image's, and then counts.
var counting = []string{"sh", "-c", "echo mine > /note; rm -f /etc/passwd; i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"}

// count is the number that a counter has logged last; -1 is none.
func count(c *harness.Container) int {
	if _, err := os.Stat(c.LogFile()); err != nil {
		return -1
	}
	for _, line := range slices.Backward(c.LogLines()) {
		if n, err := strconv.Atoi(line[strings.LastIndexByte(line, ' ')+1:]); err == nil {
			return n
		}
	}
	return -1
}

func counts(n *harness.Node, c *harness.Container, beyond int) {
	n.Eventually(fmt.Sprintf("it counts beyond %d", beyond), func() error {
		if got := count(c); got <= beyond {
			return fmt.Errorf("it has counted to %d", got)
		}
		return nil
	})
}

// TestCheckpoint: containers and pods are checkpointed and go on; a pod is made
// of what was written, and its containers go on from there, with the files that
// they had. Where CRIU does not work with the kernel the error says so.
func TestCheckpoint(t *testing.T) {
	n := harness.Start(t, harness.Options{Handler: "runc"})
	p := n.RunPod()
	one, two := p.Start(counting), p.Start(counting)
	counts(n, one, 3)
	counts(n, two, 3)

	archive := filepath.Join(n.Dir(), "one.tar")
	_, err := n.Runtime.CheckpointContainer(n.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: one.ID, Location: archive})
	then := count(one)
	counts(n, one, then+3)
	out := filepath.Join(n.Dir(), "out")
	if err := os.Mkdir(out, 0o700); err != nil {
		t.Fatal(err)
	}
	all := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.ID, OutputPath: out, ContainerIds: []string{one.ID, two.ID}}
	works := criu.Works(t)
	wantCheckpoints(t, n, works)
	if !works {
		wantError(t, err, codes.FailedPrecondition, "CRIU says")
		_, err := n.Runtime.CheckpointPod(n.Context(), all)
		wantError(t, err, codes.FailedPrecondition, "CRIU says")
		for _, dir := range []string{out, filepath.Join(n.Dir(), "root", "checkpoints")} {
			if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		}
		counts(n, two, count(two)+3)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	a, err := checkpoint.Open(archive)
	if err != nil || a.Container.Name != one.Config.Metadata.Name || len(a.Removed) != 1 {
		t.Errorf("the archive tells of %+v, %v", a, err)
	}
	if _, err := n.Runtime.CheckpointPod(n.Context(), all); err != nil {
		t.Fatal(err)
	}
	first := min(count(one), count(two))
	counts(n, one, count(one)+3)
	counts(n, two, count(two)+3)
	p.Remove()
	restored(t, n, p, out, first, one, two)
	onlyWritten(t, n)
}

// onlyWritten: a container in a user namespace is checkpointed, for inspection, and goes on; a pod that has one cannot be
// made of that.
func onlyWritten(t *testing.T, n *harness.Node) {
	t.Helper()
	p := n.RunPod(userNamespace)
	c := p.Start(counting, likePod(p))
	counts(n, c, 3)
	out := filepath.Join(n.Dir(), "users")
	if err := os.Mkdir(out, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := n.Runtime.CheckpointPod(n.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: p.ID, OutputPath: out, ContainerIds: []string{c.ID}})
	if err != nil {
		t.Fatal(err)
	}
	counts(n, c, count(c)+3)
	config := proto.CloneOf(p.Config)
	config.Metadata.Uid = "uid-restored"
	restore := func() error {
		_, err := n.Runtime.RestorePod(n.Context(), &runtimeapi.RestorePodRequest{
			CheckpointPath: out, Config: config, ContainerConfigs: []*runtimeapi.ContainerConfig{c.Config},
		})
		return err
	}
	wantError(t, restore(), codes.InvalidArgument, "userns_options.mode", "CRIU")
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = nil
	c.Config.Linux.SecurityContext.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
	wantError(t, restore(), codes.InvalidArgument, "namespace_options", "user of the pod")
	equal(t, "pods after a refused restore", len(sandboxes(t, n, nil)), 1)
}

// restored makes a pod of a checkpoint and sees its containers go on.
func restored(t *testing.T, n *harness.Node, old *harness.Pod, path string, first int, containers ...*harness.Container) {
	t.Helper()
	config := proto.CloneOf(old.Config)
	config.Metadata.Uid = "uid-restored"
	config.LogDirectory += "-restored"
	req := &runtimeapi.RestorePodRequest{CheckpointPath: path, Config: config}
	for _, c := range containers {
		req.ContainerConfigs = append(req.ContainerConfigs, c.Config)
	}
	wrong := proto.CloneOf(req)
	wrong.ContainerConfigs[0].Command = []string{"true"}
	_, err := n.Runtime.RestorePod(n.Context(), wrong)
	wantError(t, err, codes.InvalidArgument, "command and args")
	equal(t, "pods after a refused restore", len(sandboxes(t, n, nil)), 0)

	answer, err := n.Runtime.RestorePod(n.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	n.KillDaemon()
	n.Ready()
	p := n.PodOf(answer.GetPodSandboxId(), config)
	for i, c := range containers {
		c := p.ContainerOf(answer.GetRestoredContainers()[i].GetContainerId(), c.Config)
		equal(t, "state of a restored container", c.Status().GetState(), runtimeapi.ContainerState_CONTAINER_CREATED)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		counts(n, c, first)
		cgroupFile(t, c, "pids.current", "pids.current") // it is in its own cgroup, not in that of the checkpointed one
		if line := c.LogLines()[0]; strings.HasSuffix(line, " 0") {
			t.Errorf("it begins from the beginning: %s", line)
		}
		equal(t, "a file that it wrote", c.Output("cat", "/note"), "mine")
		equal(t, "a file that it removed", c.Exec("test", "-e", "/etc/passwd").GetExitCode(), 1)
		n.KillShim()
		counts(n, c, count(c)+3)
		c.Stop(0)
		equal(t, "exit code", c.Status().GetExitCode(), 137)
	}
	p.Remove()
}

// wantCheckpoints: a verbose status says whether checkpoints can be made, and with which handlers.
func wantCheckpoints(t *testing.T, n *harness.Node, works bool) {
	t.Helper()
	status, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var said struct {
		Handlers []string
		Problem  string
	}
	if err := json.Unmarshal([]byte(status.GetInfo()["checkpoints"]), &said); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(said.Handlers, "runc") || (said.Problem == "") != works {
		t.Errorf("the status says %+v of checkpoints; CRIU works: %v", said, works)
	}
}
