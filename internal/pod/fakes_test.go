package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/image"
	"github.com/berth-runtime/berth/internal/network"
	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/handlers"
	"github.com/berth-runtime/berth/internal/shim"
)

// books note what exists outside of the engine.
type books struct {
	kind string
	mu   sync.Mutex
	ids  map[string]bool
}

func newBooks(kind string) *books { return &books{kind: kind, ids: map[string]bool{}} }

func (b *books) set(id string, there bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if there {
		b.ids[id] = true
	} else {
		delete(b.ids, id)
	}
}

func (b *books) list() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []string
	for range b.ids {
		all = append(all, b.kind)
	}
	return all
}

func (b *books) keys() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.ids))
}

type fakeNetwork struct{ *books }

func (f fakeNetwork) Plan(network.Pod) (network.Plan, error) { return network.Plan{}, nil }

func (f fakeNetwork) Attach(ctx context.Context, pod network.Pod, _ network.Plan) (network.Result, error) {
	if _, err := os.Stat(pod.NetNS); err != nil {
		return network.Result{}, fmt.Errorf("network namespace %s: %w", pod.NetNS, errdefs.ErrNotFound)
	}
	f.set(pod.ID, true)
	return network.Result{IPs: []netip.Addr{netip.MustParseAddr("10.1.2.3")}}, ctx.Err()
}

func (f fakeNetwork) Detach(_ context.Context, pod network.Pod, _ network.Plan) error {
	f.set(pod.ID, false)
	return nil
}

func (f fakeNetwork) Ready() error { return nil }

func (f fakeNetwork) Collect(_ context.Context, live map[string]bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.ids {
		if !live[id] {
			delete(f.ids, id)
		}
	}
	return nil
}

type fakeImages struct {
	*books
	volumes *books
	// imported are the changes that were made in what is mounted.
	imported *sync.Map
}

// missingImage is the ID of the image that fakeImages does not have.
const missingImage = "sha256:missing"

func (f fakeImages) Resolve(ref string) (*image.Image, error) {
	if ref == "missing" {
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	img := &image.Image{ID: "sha256:" + ref}
	if ref == "checkpoint" {
		img.Annotations = map[string]string{"org.criu.checkpoint.container.name": "app"}
	}
	return img, nil
}

func (f fakeImages) PrepareRootfs(_ context.Context, key, imageID string) error {
	if imageID == missingImage {
		return fmt.Errorf("image %q: %w", imageID, errdefs.ErrNotFound)
	}
	f.set(key, true)
	return nil
}

func (f fakeImages) MountRootfs(_ context.Context, _, target string, _ bool, _ *image.Mapping) error {
	return os.MkdirAll(target, 0o700)
}

func (f fakeImages) LabelRootfs(string, string) error { return nil }

func (f fakeImages) UnmountRootfs(_ context.Context, target string) error {
	if err := unix.Unmount(target, 0); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (f fakeImages) PrepareVolumeDirs(context.Context, string, string, []string, *image.Mapping) ([]string, error) {
	return nil, nil
}

func (f fakeImages) PrepareVolume(_ context.Context, key, imageID string) error {
	if imageID == missingImage {
		return fmt.Errorf("image %q: %w", imageID, errdefs.ErrNotFound)
	}
	f.volumes.set(key, true)
	return nil
}

func (f fakeImages) MountVolume(_ context.Context, _, target string, _ *image.Mapping, _ string) error {
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	if mounted, err := mountinfo.Mounted(target); mounted || err != nil {
		return err
	}
	return unix.Mount("volume", target, "tmpfs", unix.MS_RDONLY, "")
}

func (f fakeImages) RemoveVolume(_ context.Context, key string) error {
	f.volumes.set(key, false)
	return nil
}

func (f fakeImages) VolumeKeys(context.Context) ([]string, error) { return f.volumes.keys(), nil }

func (f fakeImages) RemoveRootfs(_ context.Context, key string) error {
	f.set(key, false)
	return nil
}

func (f fakeImages) ExportRootfs(_ context.Context, _ string, _ map[int]string, w io.Writer) ([]string, error) {
	_, err := w.Write(changesArchive)
	return []string{"/removed"}, err
}

func (f fakeImages) ImportRootfs(_ context.Context, target string, changes io.Reader, _ []string) error {
	data, err := io.ReadAll(changes)
	if err != nil {
		return err
	}
	f.imported.Store(target, string(data))
	return nil
}

func (f fakeImages) RootfsKeys(context.Context) ([]string, error) {
	return f.keys(), nil
}

func (f fakeImages) RootfsUsage(context.Context, string) (bytes, inodes uint64, err error) {
	return 1, 1, nil
}

// fakeShim is a supervisor without processes. Like the real one it survives
// the daemon and reports an exit until its container is deleted.
type fakeShim struct {
	*books
	cgroups *cgroup.Host
	dump    func(context.Context, shim.CheckpointRequest) error // in place of CRIU
	deaf    func()                                              // is called at the one Kill that fails
	fault   func(effect string) error                           // holds or fails what follows a Delete
	restore func(cgroup string) error                           // starts processes in the cgroup of a restored container
	exits   chan shim.Exit
	known   map[string]shim.Container
}

func newFakeShim(cgroups *cgroup.Host) *fakeShim {
	return &fakeShim{cgroups: cgroups, books: newBooks("process"), known: map[string]shim.Container{}}
}

// connect begins the life of a new client.
func (f *fakeShim) connect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.exits = make(chan shim.Exit, 100)
	for _, c := range f.known {
		if c.Exit != nil {
			f.exits <- *c.Exit
		}
	}
}

// forget loses every process, as a reboot does.
func (f *fakeShim) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.known)
	clear(f.ids)
}

func (f *fakeShim) Start(_ context.Context, req shim.StartRequest) (shim.Started, error) {
	if err := f.cgroups.Create(req.CgroupPath); err != nil {
		return shim.Started{}, err
	}
	if req.Restore != nil {
		if _, err := os.Stat(filepath.Join(req.Restore.Images, "inventory.img")); err != nil {
			return shim.Started{}, err
		}
		if f.restore != nil {
			if err := f.restore(req.CgroupPath); err != nil {
				return shim.Started{}, err
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ids[req.ID] = true
	f.known[req.ID] = shim.Container{ID: req.ID, PID: 1, Running: true, Started: time.Now()}
	return shim.Started{PID: 1, At: time.Now()}, nil
}

func (f *fakeShim) StartInfra(context.Context, shim.InfraRequest) (int, error) {
	return 0, fmt.Errorf("no infra here: %w", errdefs.ErrNotImplemented)
}

func (f *fakeShim) Kill(_ context.Context, id string, sig syscall.Signal) error {
	if f.deaf != nil {
		f.deaf()
		f.deaf = nil
		return fmt.Errorf("container %s: %w", id, errdefs.ErrUnavailable)
	}
	f.mu.Lock()
	exited := f.known[id].Exit != nil
	f.mu.Unlock()
	if exited {
		return fmt.Errorf("container %s is not running: %w", id, errdefs.ErrNotFound)
	}
	return f.finish(id, 128+int(sig))
}

func (f *fakeShim) KillAll(_ context.Context, id string) error {
	return f.finish(id, 128+int(syscall.SIGKILL))
}

// end ends a process by itself.
func (f *fakeShim) end(id, code string) {
	n, err := strconv.Atoi(code)
	if err != nil {
		panic(err)
	}
	if err := f.finish(id, n); err != nil {
		panic(err)
	}
}

func (f *fakeShim) finish(id string, code int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.known[id]
	if !ok {
		return fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	if c.Exit == nil {
		c.Exit, c.Running = &shim.Exit{ID: id, Code: code, Known: true, At: time.Now()}, false
		f.known[id] = c
		f.exits <- *c.Exit
	}
	return nil
}

func (f *fakeShim) Delete(_ context.Context, id string) error {
	f.mu.Lock()
	delete(f.known, id)
	delete(f.ids, id)
	f.mu.Unlock()
	if f.fault == nil {
		return nil
	}
	return f.fault("supervisor delete")
}

func (f *fakeShim) List(context.Context) ([]shim.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []shim.Container
	for _, c := range f.known {
		all = append(all, c)
	}
	return all, nil
}

func (f *fakeShim) Exits() <-chan shim.Exit {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.exits
}

func (f *fakeShim) Update(_ context.Context, id string, _ *specs.LinuxResources) error {
	return f.find(id)
}

func (f *fakeShim) ReopenLog(_ context.Context, id string) error { return f.find(id) }

// find is an error for a container that is not known.
func (f *fakeShim) find(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.known[id]; !ok {
		return fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return nil
}

// Checkpoint writes what CRIU would; a container that runs meanwhile is an error.
func (f *fakeShim) Checkpoint(ctx context.Context, req shim.CheckpointRequest) error {
	f.mu.Lock()
	dump := f.dump
	f.mu.Unlock()
	if dump != nil {
		if err := dump(ctx, req); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(req.Images, "inventory.img"), []byte(req.ID), 0o600),
		os.WriteFile(filepath.Join(req.Work, "dump.log"), nil, 0o600),
	)
}

func (f *fakeShim) Exec(context.Context, shim.ExecRequest) (*shim.Exec, error) {
	return nil, errdefs.ErrNotImplemented
}

func (f *fakeShim) Attach(context.Context, string, bool) (*shim.Attachment, error) {
	return nil, errdefs.ErrNotImplemented
}

// fakeHandlers are by name; runc is the default.
type fakeHandlers map[string]handlers.Info

func newFakeHandlers() fakeHandlers {
	return fakeHandlers{
		"runc": {Features: ociruntime.Features{Checkpoint: true, UserNamespaces: true}},
		"crun": {Handler: ociruntime.Handler{Name: "crun"}},
		"vm":   {Handler: ociruntime.Handler{Name: "vm"}, Features: ociruntime.Features{UserNamespaces: true}, SandboxContainer: true},
	}
}

func (f fakeHandlers) Get(_ context.Context, name string) (handlers.Info, error) {
	if name == "" {
		name = f.Default()
	}
	info, ok := f[name]
	if !ok {
		return info, fmt.Errorf("runtime_handler %q is not configured: %w", name, errdefs.ErrInvalidArgument)
	}
	return info, nil
}

func (f fakeHandlers) All() map[string]handlers.Info { return f }

func (fakeHandlers) Default() string { return "runc" }

// changesArchive is what fake images export of a container: a tar archive without entries.
var changesArchive = make([]byte, 1024)
