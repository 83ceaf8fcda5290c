package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/checkpoint"
	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
	"github.com/berth-runtime/berth/internal/pod/store"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/test/privilege"
)

// frozen tells whether the container stands still.
func (n *node) frozen(name string) bool {
	n.t.Helper()
	c, err := n.engine.findContainer(n.ids[name])
	if err != nil {
		n.t.Fatal(err)
	}
	dir, ok := n.opts.Cgroups.Dir("freezer", c.rec.CgroupPath)
	if !ok {
		n.t.Fatal("this host has no freezer")
	}
	for file, frozen := range map[string]string{"freezer.state": "FROZEN", "cgroup.freeze": "1"} {
		if text, err := os.ReadFile(filepath.Join(dir, file)); err == nil && strings.TrimSpace(string(text)) == frozen {
			return true
		}
	}
	return false
}

// started makes a pod whose containers run.
func (n *node) started(pod string, containers ...string) {
	n.t.Helper()
	if err := n.run(n.t.Context(), pod); err != nil {
		n.t.Fatal(err)
	}
	for _, name := range containers {
		if err := n.create(n.t.Context(), name, pod); err != nil {
			n.t.Fatal(err)
		}
		if err := n.engine.StartContainer(n.t.Context(), n.ids[name]); err != nil {
			n.t.Fatal(err)
		}
	}
}

// TestCheckpointContainer: the container stands still while it is checkpointed,
// and then goes on; the archive tells what it was.
func TestCheckpointContainer(t *testing.T) {
	privilege.Root(t)
	n := newNode(t)
	n.started("web", "app")
	to := filepath.Join(t.TempDir(), "app.tar")
	n.shim.dump = func(context.Context, shim.CheckpointRequest) error {
		if !n.frozen("app") {
			t.Error("the container runs while it is checkpointed")
		}
		err := n.engine.CheckpointContainer(t.Context(), n.ids["app"], to, 0)
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("a second checkpoint at the same time: got %v, want a failed precondition", err)
		}
		return nil
	}
	if err := n.engine.CheckpointContainer(t.Context(), n.ids["app"], to, time.Minute); err != nil {
		t.Fatal(err)
	}
	a, err := checkpoint.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	if a.Container.Name != "app" || a.Container.ImageID != "sha256:busybox" || a.Container.Runtime != "runc" || a.Spec.Process.Args[0] != "/bin/sh" {
		t.Errorf("the archive tells of %+v", a.Container)
	}
	n.afterCheckpoint("app")

	// What was there before stays when there is no new one.
	n.shim.dump = func(context.Context, shim.CheckpointRequest) error { return errInjected }
	if err := n.engine.CheckpointContainer(t.Context(), n.ids["app"], to, 0); !errors.Is(err, errInjected) {
		t.Errorf("got %v, want what failed", err)
	}
	if _, err := checkpoint.Open(to); err != nil {
		t.Errorf("the archive from before: %v", err)
	}
	n.afterCheckpoint("app")
	n.finish()
}

// afterCheckpoint asserts that the container goes on and that no checkpoint is left.
func (n *node) afterCheckpoint(name string) {
	n.t.Helper()
	if n.frozen(name) {
		n.t.Errorf("%s stands still", name)
	}
	if left, err := filepath.Glob(filepath.Join(n.root, "checkpoints", "*")); err != nil || len(left) > 0 {
		n.t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestCheckpointLocation: what is no place for an archive is refused, and so is a
// container that does not run or whose handler cannot checkpoint.
func TestCheckpointLocation(t *testing.T) {
	privilege.Root(t)
	n := newNode(t)
	n.started("web", "app")
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, location := range []string{"", "app.tar", "/", dir, dir + "/", dir + "/none/app.tar", dir + "/../app.tar", dir + "/link"} {
		if err := n.engine.CheckpointContainer(t.Context(), n.ids["app"], location, 0); !errdefs.IsInvalidArgument(err) {
			t.Errorf("location %q: got %v, want an invalid argument", location, err)
		}
	}
	location := filepath.Join(dir, "app.tar")
	if err := n.engine.CheckpointContainer(t.Context(), strings.Repeat("0", 64), location, 0); !errdefs.IsNotFound(err) {
		t.Errorf("unknown container: got %v, want not found", err)
	}
	n.opts.Handlers.(fakeHandlers)["runc"] = handlers.Info{}
	if err := n.engine.CheckpointContainer(t.Context(), n.ids["app"], location, 0); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "runtime_handler") {
		t.Errorf("handler without CRIU: got %v, want a failed precondition that names it", err)
	}
	if err := n.engine.StopContainer(t.Context(), n.ids["app"], 0); err != nil {
		t.Fatal(err)
	}
	if err := n.engine.CheckpointContainer(t.Context(), n.ids["app"], location, 0); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("stopped container: got %v, want a failed precondition", err)
	}
	n.finish()
}

// TestCheckpointSandbox: all containers stand still before the first is written
// down and until the last is.
func TestCheckpointSandbox(t *testing.T) {
	privilege.Root(t)
	n := newNode(t)
	n.started("web", "one", "two")
	out := t.TempDir()
	n.shim.dump = func(context.Context, shim.CheckpointRequest) error {
		if !n.frozen("one") || !n.frozen("two") {
			t.Error("a container runs while another is checkpointed")
		}
		return nil
	}
	if err := n.engine.CheckpointSandbox(t.Context(), n.ids["web"], out, []string{n.ids["one"], n.ids["two"]}, nil); err != nil {
		t.Fatal(err)
	}
	pod, archives, err := checkpoint.OpenPod(out)
	if err != nil || pod.Name != "web" || len(archives) != 2 || archives["two"].Container.ID != n.ids["two"] {
		t.Errorf("got %+v, %v, %v", pod, archives, err)
	}
	if entries, err := os.ReadDir(out); err != nil || len(entries) != 3 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
	n.afterCheckpoint("one")
	n.afterCheckpoint("two")
	n.finish()
}

// TestCheckpointSandboxFails: whatever fails, all containers go on and the
// directory is empty.
func TestCheckpointSandboxFails(t *testing.T) {
	privilege.Root(t)
	n := newNode(t)
	n.started("web", "one", "two")
	n.started("other", "foreign")
	if err := n.create(t.Context(), "idle", "web"); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	both := []string{n.ids["one"], n.ids["two"]}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		pod, out string
		ids      []string
		options  map[string]string
		refused  func(error) bool
	}{
		"unknown pod":    {pod: strings.Repeat("0", 64), out: out, ids: both, refused: errdefs.IsNotFound},
		"relative":       {out: "out", ids: both, refused: errdefs.IsInvalidArgument},
		"missing":        {out: out + "/none", ids: both, refused: errdefs.IsInvalidArgument},
		"not empty":      {out: full, ids: both, refused: errdefs.IsInvalidArgument},
		"option":         {out: out, ids: both, options: map[string]string{"x": "y"}, refused: errdefs.IsInvalidArgument},
		"none":           {out: out, refused: errdefs.IsInvalidArgument},
		"twice":          {out: out, ids: append(both, both[0]), refused: errdefs.IsInvalidArgument},
		"not all":        {out: out, ids: both[:1], refused: errdefs.IsFailedPrecondition},
		"unknown":        {out: out, ids: append(both, strings.Repeat("0", 64)), refused: errdefs.IsNotFound},
		"of another pod": {out: out, ids: append(both, n.ids["foreign"]), refused: errdefs.IsInvalidArgument},
		"not running":    {out: out, ids: append(both, n.ids["idle"]), refused: errdefs.IsFailedPrecondition},
	} {
		pod := test.pod
		if pod == "" {
			pod = n.ids["web"]
		}
		if err := n.engine.CheckpointSandbox(t.Context(), pod, test.out, test.ids, test.options); !test.refused(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for _, fails := range []string{"one", "two"} {
		n.shim.dump = func(_ context.Context, req shim.CheckpointRequest) error {
			if req.ID == n.ids[fails] {
				return errInjected
			}
			return nil
		}
		if err := n.engine.CheckpointSandbox(t.Context(), n.ids["web"], out, both, nil); !errors.Is(err, errInjected) {
			t.Errorf("dump of %s: got %v, want what failed", fails, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	n.shim.dump = func(context.Context, shim.CheckpointRequest) error {
		cancel()
		return nil
	}
	if err := n.engine.CheckpointSandbox(ctx, n.ids["web"], out, both, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("caller gone: got %v", err)
	}
	if entries, err := os.ReadDir(out); err != nil || len(entries) != 0 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
	n.afterCheckpoint("one")
	n.afterCheckpoint("two")
	n.finish()
}

// TestDaemonDiesInCheckpoint: the next daemon lets the containers go on and
// removes what is of no use.
func TestDaemonDiesInCheckpoint(t *testing.T) {
	privilege.Root(t)
	n := newNode(t)
	n.started("web", "app")
	c, err := n.engine.findContainer(n.ids["app"])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	partial, other := filepath.Join(t.TempDir(), "app.tar.partial"), filepath.Join(t.TempDir(), "other")
	dir := n.engine.checkpointDir(store.NewID())
	for _, err := range []error{
		n.engine.store.Write(string(dir)+noteExt, intent{Frozen: []string{c.rec.CgroupPath}, Files: []string{partial, string(dir)}}),
		dir.Make(), n.engine.checkpointDir("stray").Make(),
		os.WriteFile(partial, []byte("half"), 0o600), os.WriteFile(other, []byte("whole"), 0o600),
		n.opts.Cgroups.Freeze(ctx, c.rec.CgroupPath),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	n.crash(false)
	n.afterCheckpoint("app")
	if _, err := os.Stat(partial); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half an archive is left: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	if v, err := n.engine.Container(n.ids["app"]); err != nil || v.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container: got %+v, %v", v, err)
	}
	n.finish()
}
