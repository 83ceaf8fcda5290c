package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/spec"
)

// node is an engine with real namespaces, mounts and cgroups, and with books
// in place of the network, the image store and the supervisor: they note what
// exists, so that a test can tell what was left.
type node struct {
	t        *testing.T
	root     string
	state    string
	opts     Options
	engine   *Engine
	network  *books
	images   *books
	volumes  *books
	imported sync.Map
	shim     *fakeShim
	faults   *faults
	plugins  *audience
	ids      map[string]string
	cancels  map[string]context.CancelFunc
	results  map[string]chan error
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatal(err)
	}
	cgroups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	host, err := spec.ReadHost()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{
		t: t, root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"),
		network: newBooks("network"), images: newBooks("snapshot"), volumes: newBooks("volume"), shim: newFakeShim(cgroups), faults: &faults{}, plugins: newAudience(),
		ids: map[string]string{}, cancels: map[string]context.CancelFunc{}, results: map[string]chan error{},
	}
	n.opts = Options{
		Root: n.root, State: n.state, Instance: "test-" + filepath.Base(dir),
		Images: fakeImages{n.images, n.volumes, &n.imported}, Network: fakeNetwork{n.network}, Shim: n.shim, Plugins: n.plugins, Cgroups: cgroups, Host: host,
		Handlers: newFakeHandlers(),
		Log:      slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		fault:    func(effect string) error { return n.faults.check(effect) },
	}
	n.shim.fault = n.faults.check
	n.open()
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return n
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (n *node) open() {
	n.t.Helper()
	n.shim.connect()
	e, err := Open(n.t.Context(), n.opts)
	if err != nil {
		n.t.Fatal(err)
	}
	n.engine = e
}

// crash ends the engine like kill -9 would. The effect that is held is not
// performed, or its result is lost.
func (n *node) crash(perform bool) {
	n.t.Helper()
	n.end(perform)
	n.open()
}

// reboot ends the engine and takes what a machine loses when it starts again:
// processes, mounts and the state directory.
func (n *node) reboot() {
	n.t.Helper()
	n.end(false)
	n.shim.forget()
	mounts, err := filepath.Glob(n.state + "/*/*/*")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, path := range mounts {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			n.t.Fatal(err)
		}
	}
	if err := os.RemoveAll(n.state); err != nil {
		n.t.Fatal(err)
	}
	n.open()
}

func (n *node) end(perform bool) {
	n.t.Helper()
	n.engine.stop()
	n.faults.release(!perform)
	n.engine.drivers.mu.Lock()
	n.engine.drivers.closed = true
	n.engine.drivers.mu.Unlock()
	for _, o := range n.engine.objects() {
		o.stopRetry()
	}
	n.engine.drivers.wg.Wait()
	n.faults.set("heal", "")
}

// awaitExits waits until the engine has taken every exit that the supervisor
// reports.
func (n *node) awaitExits() {
	n.t.Helper()
	ended, err := n.shim.List(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range ended {
		if p.Exit != nil {
			n.awaitFall(p.ID)
		}
		c, err := n.engine.findContainer(p.ID)
		if err != nil || p.Exit == nil {
			continue
		}
		select {
		case <-c.exited:
		case <-time.After(20 * time.Second):
			n.t.Fatalf("the exit of %s was not taken", c)
		}
	}
}

// awaitFall waits until a sandbox is not ready any more.
func (n *node) awaitFall(id string) {
	n.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s, err := n.engine.Sandbox(id); err != nil || s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			return
		}
	}
	n.t.Fatalf("the end of sandbox %s was not taken", id)
}

// awaitRest waits until nothing is in flight.
func (n *node) awaitRest() string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	n.engine.waitIdle(ctx)
	if ctx.Err() != nil {
		return "still busy"
	}
	return ""
}

// finish removes what a history left and asserts that nothing remains.
func (n *node) finish() {
	n.t.Helper()
	n.faults.set("heal", "")
	for _, s := range n.engine.Sandboxes(Filter{}) {
		if err := n.engine.RemoveSandbox(n.t.Context(), s.ID); err != nil {
			n.t.Errorf("remove what the history left: %v", err)
		}
	}
	if left := n.exists(); len(left) > 0 {
		n.t.Errorf("left behind: %v", left)
	}
	n.plugins.check(n.t)
	if err := n.engine.Close(n.t.Context()); err != nil {
		n.t.Error(err)
	}
}

// run makes a pod, with a handler if one is named.
func (n *node) run(ctx context.Context, name string, handler ...string) error {
	return n.runWith(ctx, name, &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}, handler...)
}

func (n *node) runWith(ctx context.Context, name string, options *runtimeapi.NamespaceOption, handler ...string) error {
	id, err := n.engine.RunSandbox(ctx, &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name,
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: options,
		}},
	}, strings.Join(handler, ""))
	if err == nil {
		n.ids[name] = id
	}
	return err
}

// mapped in place of an image is a directory that is mounted with a mapping.
const mapped = "mapped"

func ids() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: 1 << 20, Length: 1 << 16}}
}

// create makes a container that mounts the given images; what follows a slash
// is the part that it wants.
func (n *node) create(ctx context.Context, name, pod string, images ...string) error {
	var mounts []*runtimeapi.Mount
	for i, ref := range images {
		if ref == mapped {
			mounts = append(mounts, &runtimeapi.Mount{
				ContainerPath: "/mapped", HostPath: n.root, UidMappings: ids(), GidMappings: ids(),
			})
			continue
		}
		ref, sub, _ := strings.Cut(ref, "/")
		mounts = append(mounts, &runtimeapi.Mount{
			ContainerPath: fmt.Sprintf("/volume%d", i), Readonly: true,
			Image: &runtimeapi.ImageSpec{Image: ref}, ImageSubPath: sub,
		})
	}
	id, err := n.engine.CreateContainer(ctx, n.ids[pod], &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: "busybox"},
		Command:  []string{"/bin/sh"},
		Mounts:   mounts,
	}, nil)
	if err == nil {
		n.ids[name] = id
	}
	return err
}

// begin makes a request that a later line gives up or sees end.
func (n *node) begin(name string, call func(context.Context) error) string {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancels[name] = cancel
	done := make(chan error, 1)
	n.results[name] = done
	go func() { done <- call(ctx) }()
	if n.faults.awaitHeld() {
		return "held"
	}
	return "not held"
}

func (n *node) ended(name string) string {
	defer n.cancels[name]()
	select {
	case err := <-n.results[name]:
		return n.result(err)
	case <-time.After(20 * time.Second):
		return "has not ended"
	}
}

func (n *node) damage(name string) {
	file := n.engine.store.SandboxFile(n.ids[name])
	if _, err := os.Stat(file); err != nil {
		matches, globErr := filepath.Glob(filepath.Join(n.root, "pods", "*", "containers", n.ids[name]+".json"))
		if globErr != nil || len(matches) != 1 {
			n.t.Fatalf("history: no record of %s", name)
		}
		file = matches[0]
	}
	data, err := os.ReadFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	// Within the closing braces, so that the words of the parser do not depend on what happens to be at the cut.
	if err := os.WriteFile(file, data[:len(data)-2], 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// exists lists everything that sandboxes and containers are made of.
func (n *node) exists() []string {
	var all []string
	for _, d := range []string{n.state + "/ns/*", n.state + "/pods/*/shm", n.state + "/containers/*", n.state + "/volumes/*/*", n.root + "/pods/*", n.root + "/checkpoints/*"} {
		matches, err := filepath.Glob(d)
		if err != nil {
			n.t.Fatal(err)
		}
		for range matches {
			all = append(all, map[string]string{"ns": "namespaces", "pods": "shm", "containers": "bundle", "volumes": "mount"}[strings.Split(strings.TrimPrefix(d, n.state), "/")[1]])
		}
	}
	for i, what := range all {
		if what == "" {
			all[i] = "record"
		}
	}
	all = append(all, n.network.list()...)
	all = append(all, n.images.list()...)
	all = append(all, n.volumes.list()...)
	all = append(all, n.shim.list()...)
	slices.Sort(all)
	return all
}

// faults fails or holds effects by name.
type faults struct {
	mu     sync.Mutex
	failed map[string]bool
	holds  map[string]chan struct{}
	held   chan struct{}
	dead   bool
}

func (f *faults) set(what, effect string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch what {
	case "fail":
		if f.failed == nil {
			f.failed = map[string]bool{}
		}
		f.failed[effect] = true
	case "hold":
		f.holds = map[string]chan struct{}{effect: make(chan struct{})}
		f.held = make(chan struct{}, 100)
	case "heal":
		f.failed, f.dead = nil, false
		f.releaseLocked()
	}
}

// release lets what is held go on, or not be performed if the daemon is dead.
func (f *faults) release(dead bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = dead
	f.releaseLocked()
}

func (f *faults) releaseLocked() {
	for _, ch := range f.holds {
		close(ch)
	}
	f.holds = nil
}

func (f *faults) awaitHeld() bool {
	f.mu.Lock()
	held := f.held
	f.mu.Unlock()
	select {
	case <-held:
		return true
	case <-time.After(10 * time.Second):
		return false
	}
}

var errInjected = errors.New("injected fault")

func (f *faults) check(effect string) error {
	f.mu.Lock()
	failed, hold, held := f.failed[effect], f.holds[effect], f.held
	f.mu.Unlock()
	if hold != nil {
		held <- struct{}{}
		<-hold
		f.mu.Lock()
		defer f.mu.Unlock()
		failed = f.dead
	}
	if failed {
		return fmt.Errorf("%s: %w", effect, errInjected)
	}
	return nil
}
