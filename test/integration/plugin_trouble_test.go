package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/harness"
)

// pluginKinds are events of a pod and its container at which there may be trouble.
var pluginKinds = []string{"Run", "Create", "Start", "Stop", "Remove"}

// TestPluginHangs: a plugin that hangs blocks no request, and pods go without it.
func TestPluginHangs(t *testing.T) {
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) { c.NRI.RequestTimeout = "500ms" }})
	n.Ready()
	for _, kind := range pluginKinds {
		t.Run("at-"+kind, func(t *testing.T) {
			p := &plugin{}
			p.on = func(_ context.Context, ev pluginEvent) error {
				if ev.kind == kind {
					<-p.gone // not its context, which ends at the same instant as the daemon's timeout: an answer would be a refusal
				}
				return nil
			}
			connect(t, n, "00", p)
			life(n)
			select {
			case <-p.gone:
			case <-n.Context().Done():
				t.Error("the plugin that hung is still connected")
			}
		})
	}
}

// TestPluginTrouble: a plugin that dies or fails blocks no request, and pods go with or without it.
func TestPluginTrouble(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Ready()
	for _, kind := range pluginKinds {
		t.Run("dies-at-"+kind, func(t *testing.T) {
			p := &plugin{}
			p.on = func(_ context.Context, ev pluginEvent) error {
				if ev.kind == kind {
					go p.stub.Stop()
					<-p.gone
				}
				return nil
			}
			connect(t, n, "00", p)
			life(n)
		})
	}
	t.Run("fails-at-the-end", func(t *testing.T) {
		p := connect(t, n, "00", &plugin{on: func(_ context.Context, ev pluginEvent) error {
			if ev.kind == "Stop" || ev.kind == "Remove" {
				return errors.New("the plugin has lost its head")
			}
			return nil
		}})
		life(n)
		equal(t, "removals that it got", len(p.find("Remove")), 2) // the container's and the pod's
	})
}

// life takes a pod with a container from run to remove.
func life(n *harness.Node) {
	pod := n.RunPod()
	c := pod.Start([]string{"sleep", "1000"})
	c.Stop(0)
	c.Remove()
	pod.Stop()
	pod.Remove()
}

// TestPluginSynchronize: a plugin that connects late learns of what is there, and of what is made meanwhile exactly once.
func TestPluginSynchronize(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Ready()
	pod := n.RunPod()
	old := pod.Start([]string{"sleep", "1000"})
	reached, release := make(chan struct{}), make(chan struct{})
	p := &plugin{sync: func(ctx context.Context, _ []*api.Container) []*api.ContainerUpdate {
		close(reached)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil
	}}
	const creates = 8
	var ids sync.Map
	var making errgroup.Group
	create := func(i int) {
		making.Go(func() error {
			c, err := pod.Create(n.ContainerConfig([]string{"sleep", "1000"}))
			if err == nil {
				ids.Store(i, c.ID)
				err = c.Start()
			}
			return err
		})
	}
	for i := range creates / 2 { // some are under way when it connects
		create(i)
	}
	if err := p.start(t, n, "10"); err != nil {
		t.Fatal(err)
	}
	<-reached
	for i := range creates / 2 { // some are begun while it looks at what there is
		create(creates/2 + i)
	}
	newPod := make(chan *harness.Pod, 1)
	go func() { newPod <- n.RunPod() }()
	close(release)
	if err := making.Wait(); err != nil {
		t.Fatal(err)
	}
	count := 0
	ids.Range(func(_, id any) bool {
		count++
		kinds := p.kindsOf(id.(string))
		if n := strings.Count(kinds, "Known") + strings.Count(" "+kinds+" ", " Create "); n != 1 {
			t.Errorf("the plugin learned %d times of a container: it got %q", n, kinds)
		}
		return true
	})
	equal(t, "containers", count, creates)
	equal(t, "events of the old container", p.kindsOf(old.ID), "Known")
	equal(t, "events of the old pod", p.kindsOf(pod.ID), "Known")
	if kinds := p.kindsOf((<-newPod).ID); kinds != "Known" && kinds != "Run" {
		t.Errorf("the plugin got %q of the new pod", kinds)
	}
}

// TestPluginFromDirectory: the daemon starts the programs in plugin_dir. When it is killed, its successor starts them
// again, tells them of what there is, and of each end that the first one did not live to tell.
func TestPluginFromDirectory(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "events")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "plugins", "05-witness"), "./testdata/witness").CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v: %s", err, out)
	}
	if err := os.Mkdir(filepath.Join(dir, "conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "conf", "witness.conf"), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		c.NRI.PluginDir, c.NRI.PluginConfigDir = filepath.Join(dir, "plugins"), filepath.Join(dir, "conf")
		c.NRI.DisableConnections = true
	}})
	n.Ready()
	pod := n.RunPod()
	lives, ends := pod.Start([]string{"sleep", "1000"}), pod.Start([]string{"sleep", "1000"})
	kinds := func(id string) string {
		var kinds []string
		for line := range strings.Lines(readFile(t, log)) {
			kind, about, _ := strings.Cut(strings.TrimSpace(line), " ")
			if about == id {
				kinds = append(kinds, kind)
			}
		}
		return strings.Join(kinds, " ")
	}
	equal(t, "events of a container", kinds(lives.ID), "Create Start")

	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	endProcess(t, ends)
	if err := n.StartDaemon(n.Context()); err != nil {
		t.Fatal(err)
	}
	n.Eventually("the plugin gets the end", func() error {
		if got, want := kinds(ends.ID), "Create Start Known Stop"; got != want {
			return fmt.Errorf("it got %q, want %q", got, want)
		}
		return nil
	})
	equal(t, "events of the one that lives", kinds(lives.ID), "Create Start Known")
	equal(t, "events of the pod", kinds(pod.ID), "Run Known")
	pod.Stop()
	pod.Remove()
	equal(t, "events of the one that lived", kinds(lives.ID), "Create Start Known Stop Remove")
	equal(t, "events of the one that ended", kinds(ends.ID), "Create Start Known Stop Remove")
	equal(t, "events of the pod", kinds(pod.ID), "Run Known Stop Remove")
}

// endProcess kills a container behind the runtime's back.
func endProcess(t *testing.T, c *harness.Container) {
	t.Helper()
	pid, err := strconv.Atoi(containerPID(t, c))
	if err == nil {
		err = unix.Kill(pid, unix.SIGKILL)
	}
	if err != nil {
		t.Fatalf("kill the container's process: %v", err)
	}
}

// TestPluginValidators: the built-in validator and those among the plugins reject adjustments.
func TestPluginValidators(t *testing.T) {
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		c.NRI.DefaultValidator, c.NRI.Reject, c.NRI.RequiredPlugins = true, []string{config.RejectSysctls}, []string{"test"}
	}})
	n.Ready()
	n.Pull()
	pod := n.RunPod()
	create := func() error {
		_, err := pod.Create(n.ContainerConfig([]string{"true"}))
		return err
	}
	wantError(t, create(), codes.Aborted, "required", "test")
	p := &plugin{adjust: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		a.SetLinuxSysctl("kernel.msgmax", "4096")
		return a, nil
	}}
	connect(t, n, "10", p)
	wantError(t, create(), codes.Aborted, "sysctl")
	p.adjust = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("SECRET", "1")
		return a, nil
	}
	p.validate = func(req *api.ValidateContainerAdjustmentRequest) error {
		for _, e := range req.GetAdjust().GetEnv() {
			if e.GetKey() == "SECRET" {
				return errors.New("a secret reason")
			}
		}
		return nil
	}
	wantError(t, create(), codes.Aborted, "a secret reason")
	equal(t, "containers", len(containers(t, n, &runtimeapi.ContainerFilter{PodSandboxId: pod.ID})), 0)
	p.adjust = nil
	if err := create(); err != nil {
		t.Errorf("a container without adjustments: %v", err)
	}
}

// TestPluginSocketTaken: a daemon does not take the socket of another runtime away, and runs pods without plugins; but
// it goes on to require those that are required.
func TestPluginSocketTaken(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nri.sock")
	other, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	})
	n := harness.Start(t, harness.Options{Configure: func(c *config.Config) {
		c.NRI.SocketPath, c.NRI.DefaultValidator, c.NRI.RequiredPlugins = socket, true, []string{"test"}
	}})
	n.Ready()
	n.Pull()
	_, err = n.RunPod().Create(n.ContainerConfig([]string{"true"}))
	wantError(t, err, codes.Aborted, "required", "test")
	answer, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if nri := answer.GetInfo()["nri"]; !strings.Contains(nri, "served by another runtime") {
		t.Errorf("the verbose status says %q of NRI", nri)
	}
	if err := n.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("the socket of the other runtime: %v", err)
	}
	if err := n.StartDaemon(n.Context()); err != nil {
		t.Fatal(err)
	}
}
