package pod

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/test/privilege"
)

// written makes a checkpoint of a pod with two containers and removes the pod.
func (n *node) written() Restore {
	n.t.Helper()
	n.started("old", "one", "two")
	out := n.t.TempDir()
	s, err := n.engine.Sandbox(n.ids["old"])
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.engine.shmDir(s.ID), "shared"), []byte("memory"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := n.engine.CheckpointSandbox(n.t.Context(), s.ID, out, []string{n.ids["one"], n.ids["two"]}, nil); err != nil {
		n.t.Fatal(err)
	}
	r := Restore{Path: out, Config: proto.CloneOf(s.Config)}
	r.Config.Metadata.Uid = "uid-new"
	for _, name := range []string{"one", "two"} {
		c, err := n.engine.Container(n.ids[name])
		if err != nil {
			n.t.Fatal(err)
		}
		r.Containers = append(r.Containers, proto.CloneOf(c.Config))
	}
	if err := n.engine.RemoveSandbox(n.t.Context(), s.ID); err != nil {
		n.t.Fatal(err)
	}
	return r
}

// contents are the files of a directory with what they hold.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entry.Name(), string(data))
	}
	return strings.Join(all, "\n")
}

// restoredLife takes a restored pod to its removal.
func (n *node) restoredLife(ctx context.Context, r Restore) error {
	id, containers, err := n.engine.RestoreSandbox(ctx, r)
	if err != nil {
		return err
	}
	for _, cid := range containers {
		if err := n.engine.StartContainer(ctx, cid); err != nil {
			return err
		}
	}
	if err := n.engine.StopSandbox(ctx, id); err != nil {
		return err
	}
	return n.engine.RemoveSandbox(ctx, id)
}

// TestRestoreSandbox: the containers are created, not started, hold what the
// checkpoint has, and need it no more; started they go on from it.
func TestRestoreSandbox(t *testing.T) {
	n := newNode(t)
	r := n.written()
	before := contents(t, r.Path)
	id, containers, err := n.engine.RestoreSandbox(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if after := contents(t, r.Path); after != before {
		t.Error("the checkpoint was changed")
	}
	if err := os.RemoveAll(r.Path); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(n.engine.shmDir(id), "shared")); err != nil || string(text) != "memory" {
		t.Errorf("shared memory: got %q, %v", text, err)
	}
	n.crash(false) // a daemon that restarts in between changes nothing
	for name, cid := range containers {
		v, err := n.engine.Container(cid)
		if err != nil || v.State != runtimeapi.ContainerState_CONTAINER_CREATED || v.Config.Metadata.Name != name {
			t.Fatalf("container %s: got %+v, %v, want it created", name, v, err)
		}
		if changes, _ := n.imported.Load(n.engine.rootfsDir(cid)); changes != string(changesArchive) {
			t.Errorf("container %s: changed files: got %v", name, changes)
		}
		if err := n.engine.StartContainer(t.Context(), cid); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(string(n.engine.checkpointDir(cid))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("container %s: its images are kept though it runs: %v", name, err)
		}
	}
	n.crash(false)
	for _, cid := range containers {
		if v, err := n.engine.Container(cid); err != nil || v.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("after a restart: got %+v, %v, want it running", v, err)
		}
	}
	n.finish()
}

// TestRestoredContainerWithMoreRightsIsKilled restores a container one of whose processes then has the
// rights of the host's root: its start fails, the process is killed, and nothing is left.
func TestRestoredContainerWithMoreRightsIsKilled(t *testing.T) {
	privilege.Root(t)
	n := newNode(t)
	r := n.written()
	var intruders []*exec.Cmd
	n.shim.restore = func(cgroup string) error {
		cmd := exec.CommandContext(t.Context(), "sleep", "1000")
		if err := cmd.Start(); err != nil {
			return err
		}
		intruders = append(intruders, cmd)
		return n.shim.cgroups.AddProc(cgroup, cmd.Process.Pid)
	}
	_, containers, err := n.engine.RestoreSandbox(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range containers {
		err := n.engine.StartContainer(t.Context(), id)
		if err == nil || !strings.Contains(err.Error(), "verify rights of the restored processes") {
			t.Errorf("start container %s: %v, want it refused", name, err)
		}
		if v, err := n.engine.Container(id); err != nil || v.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("container %s is %+v (%v), want it exited", name, v, err)
		}
	}
	if len(intruders) != len(containers) {
		t.Errorf("%d processes were started for %d containers", len(intruders), len(containers))
	}
	for _, cmd := range intruders {
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("process of a restored container: %v, want it killed", err)
		}
	}
	n.finish()
}

// TestRestoreRefused: what does not fit the checkpoint is refused, the error
// names it, and nothing is left.
func TestRestoreRefused(t *testing.T) {
	n := newNode(t)
	good := n.written()
	for name, test := range map[string]struct {
		change func(r *Restore)
		says   string
		kind   func(error) bool
	}{
		"path":          {func(r *Restore) { r.Path = "here" }, "checkpoint_path", errdefs.IsInvalidArgument},
		"no_checkpoint": {func(r *Restore) { r.Path = t.TempDir() }, "pod.options", errdefs.IsInvalidArgument},
		"option":        {func(r *Restore) { r.Options = map[string]string{"a": "b"} }, `options["a"]`, errdefs.IsInvalidArgument},
		"handler":       {func(r *Restore) { r.Handler = "kata" }, `runtime_handler "kata"`, errdefs.IsInvalidArgument},
		"no_criu":       {func(r *Restore) { r.Handler = "crun" }, `runtime_handler "crun"`, errdefs.IsFailedPrecondition},
		"none":          {func(r *Restore) { r.Containers = nil }, "container_configs", errdefs.IsInvalidArgument},
		"one_missing":   {func(r *Restore) { r.Containers = r.Containers[:1] }, "one, two", errdefs.IsInvalidArgument},
		"twice":         {func(r *Restore) { r.Containers[1] = r.Containers[0] }, "container_configs[1].metadata.name", errdefs.IsInvalidArgument},
		"nameless":      {func(r *Restore) { r.Containers[1].Metadata.Name = "" }, "container_configs[1].metadata.name", errdefs.IsInvalidArgument},
		"other_name":    {func(r *Restore) { r.Containers[1].Metadata.Name = "three" }, "one, three", errdefs.IsInvalidArgument},
		"image":         {func(r *Restore) { r.Containers[1].Image.Image = "missing" }, "image.image", errdefs.IsNotFound},
		"command":       {func(r *Restore) { r.Containers[1].Command = []string{"/bin/true"} }, "command and args", errdefs.IsInvalidArgument},
		"working_dir":   {func(r *Restore) { r.Containers[1].WorkingDir = "/tmp" }, "working_dir", errdefs.IsInvalidArgument},
		"env":           {func(r *Restore) { r.Containers[1].Envs = []*runtimeapi.KeyValue{{Key: "a", Value: []byte("b")}} }, "envs", errdefs.IsInvalidArgument},
		"tty":           {func(r *Restore) { r.Containers[1].Tty = true }, "tty", errdefs.IsInvalidArgument},
		"privileges": {func(r *Restore) {
			r.Containers[1].Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NoNewPrivs: true}}
		}, "linux.security_context", errdefs.IsInvalidArgument},
		"user_namespace": {func(r *Restore) {
			ids := []*runtimeapi.IDMapping{{HostId: 1 << 16, Length: 1 << 16}}
			options := &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}}
			r.Config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}}
		}, `userns_options.mode "POD"`, errdefs.IsInvalidArgument},
		"mount": {func(r *Restore) {
			r.Containers[1].Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: t.TempDir()}}
		}, "mounts", errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			r := good
			r.Config = proto.CloneOf(good.Config)
			r.Containers = nil
			for _, cfg := range good.Containers {
				r.Containers = append(r.Containers, proto.CloneOf(cfg))
			}
			test.change(&r)
			_, _, err := n.engine.RestoreSandbox(t.Context(), r)
			if !test.kind(err) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want one that names %s", err, test.says)
			}
			if left := n.exists(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if err := n.restoredLife(t.Context(), good); err != nil {
		t.Errorf("what fits: %v", err)
	}
	n.finish()
}

// TestContainerOfACheckpointRefused: other engines take the path of an archive, or an image of it, for the image of a
// container. Here the error says what there is instead.
func TestContainerOfACheckpointRefused(t *testing.T) {
	n := newNode(t)
	n.started("web")
	for _, ref := range []string{"/var/lib/kubelet/checkpoints/app.tar", "checkpoint"} {
		_, err := n.engine.CreateContainer(t.Context(), n.ids["web"], &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "app"}, Image: &runtimeapi.ImageSpec{Image: ref}, Command: []string{"/bin/sh"},
		}, nil)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), ref) || !strings.Contains(err.Error(), "RestorePod") {
			t.Errorf("image %s: got %v, want one that names RestorePod", ref, err)
		}
	}
	n.finish()
}

// restoreEffects are those at which a restore differs from a life without one.
var restoreEffects = []string{
	"save", "do network", "do rootfs", "do checkpoint", "undo checkpoint", "do bundle", "do process", "undo process",
}

// TestEveryEffectOfARestoreMayFail is TestEveryEffectMayFail for a pod that is restored.
func TestEveryEffectOfARestoreMayFail(t *testing.T) {
	for _, effect := range restoreEffects {
		t.Run(strings.ReplaceAll(effect, " ", "_"), func(t *testing.T) {
			n := newNode(t)
			r := n.written()
			n.faults.set("fail", effect)
			if err := n.restoredLife(t.Context(), r); err == nil {
				t.Error("the fault had no effect")
			}
			n.faults.set("heal", "")
			n.clean(t.Context())
			if err := n.restoredLife(t.Context(), r); err != nil {
				t.Errorf("the same requests after the fault: %v", err)
			}
			n.finish()
		})
	}
}

// TestTheDaemonMayDieInEveryEffectOfARestore is TestTheDaemonMayDieInEveryEffect
// for a pod that is restored.
func TestTheDaemonMayDieInEveryEffectOfARestore(t *testing.T) {
	for _, effect := range restoreEffects {
		for _, performed := range []bool{false, true} {
			when := map[bool]string{false: "before_", true: "after_"}[performed]
			t.Run(when+strings.ReplaceAll(effect, " ", "_"), func(t *testing.T) {
				n := newNode(t)
				r := n.written()
				n.faults.set("hold", effect)
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				ended := make(chan error, 1)
				go func() { ended <- n.restoredLife(ctx, r) }()
				if !n.faults.awaitHeld() {
					t.Fatal("the effect was not reached")
				}
				n.crash(performed)
				if err := <-ended; err == nil {
					t.Error("the life did not notice that the daemon died")
				}
				n.awaitExits()
				n.clean(t.Context())
				n.engine.waitIdle(ctx)
				if left := n.exists(); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
				if err := n.restoredLife(t.Context(), r); err != nil {
					t.Errorf("the same requests after the restart: %v", err)
				}
				n.finish()
			})
		}
	}
}
