package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-runtime/berth/internal/checkpoint"
	"github.com/berth-runtime/berth/internal/pod/store"
	"github.com/berth-runtime/berth/internal/shim"
	"github.com/berth-runtime/berth/internal/spec"
)

// checkpointDeadline bounds a checkpoint whose request does not.
const checkpointDeadline = 2 * time.Minute

// CheckpointContainer writes a running container down: its processes and its
// files, in one archive at location. It stands still meanwhile and then goes on,
// whatever the outcome. After an error there is no archive. No timeout means
// two minutes.
func (e *Engine) CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error {
	c, err := e.running(id)
	if err != nil {
		return fmt.Errorf("checkpoint container: %w", err)
	}
	if err := checkLocation(location); err != nil {
		return fmt.Errorf("checkpoint %s: %w", c, err)
	}
	if timeout == 0 {
		timeout = checkpointDeadline
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dir := e.checkpointDir(store.NewID())
	d := &dump{engine: e, note: string(dir) + noteExt, parts: []part{{c, dir}}}
	d.intent.Files = []string{string(dir), checkpoint.Partial(location)}
	err = d.make(ctx, func(ctx context.Context) error { return dir.Pack(ctx, location) })
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", c, err)
	}
	return nil
}

// checkLocation refuses where no archive can be put.
func checkLocation(location string) error {
	refuse := func(reason string) error {
		return fmt.Errorf("location %q: %s: %w", location, reason, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(location) || filepath.Clean(location) != location {
		return refuse("must be an absolute path without detours")
	}
	if info, err := os.Stat(filepath.Dir(location)); err != nil || !info.IsDir() {
		return refuse("its directory does not exist")
	}
	if info, err := os.Lstat(location); err == nil && !info.Mode().IsRegular() {
		return refuse("something that is no file is there")
	}
	return nil
}

// checkpointDir is a place of ours for what a checkpoint consists of.
func (e *Engine) checkpointDir(id string) checkpoint.Dir {
	return checkpoint.Dir(filepath.Join(e.opts.Root, "checkpoints", id))
}

// part is one container of a dump, and the directory of its checkpoint.
type part struct {
	c   *container
	dir checkpoint.Dir
}

// dump is a checkpoint that is being made of containers which stand still
// together.
type dump struct {
	engine *Engine
	parts  []part
	// note is the file that says what to undo, should the daemon die.
	note   string
	intent intent
	frozen []*container
}

// make stops the containers, writes them down, lets them go on and calls finish
// with what was written. What the intent names is removed in the end, but for
// what finish has renamed.
func (d *dump) make(ctx context.Context, finish func(context.Context) error) (err error) {
	for _, p := range d.parts {
		h, err := d.engine.opts.Handlers.Get(ctx, p.c.sandbox.rec.Handler)
		if err != nil {
			return err
		}
		if !h.Features.Checkpoint {
			return fmt.Errorf("runtime_handler %q: its OCI runtime cannot checkpoint containers on this host: %w", h.Handler.Name, errdefs.ErrFailedPrecondition)
		}
	}
	claimed, err := d.claim()
	defer d.release(claimed)
	if err != nil {
		return err
	}
	if err := d.engine.store.Write(d.note, d.intent); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.intent.undo(d.engine), removeFile(d.note)) }()
	if err := d.capture(ctx); err != nil {
		return err
	}
	return finish(ctx)
}

// claim takes the containers; one is in one dump at a time.
func (d *dump) claim() (claimed []*container, err error) {
	for _, p := range d.parts {
		p.c.mu.Lock()
		busy := p.c.dumping
		p.c.dumping = true
		p.c.mu.Unlock()
		if busy {
			return claimed, fmt.Errorf("%s is being checkpointed already: %w", p.c, errdefs.ErrFailedPrecondition)
		}
		claimed = append(claimed, p.c)
		d.intent.Frozen = append(d.intent.Frozen, p.c.rec.CgroupPath)
	}
	return claimed, nil
}

func (d *dump) release(claimed []*container) {
	for _, c := range claimed {
		c.mu.Lock()
		c.dumping = false
		c.mu.Unlock()
	}
}

// capture writes every container down while none of them runs.
func (d *dump) capture(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, d.thaw()) }()
	for _, p := range d.parts {
		if err := p.dir.Make(); err != nil {
			return err
		}
		if err := d.engine.opts.Cgroups.Freeze(ctx, p.c.rec.CgroupPath); err != nil {
			return fmt.Errorf("%s: %w", p.c, err)
		}
		d.frozen = append(d.frozen, p.c)
	}
	for _, p := range d.parts {
		if err := p.capture(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.c, err)
		}
	}
	return nil
}

// thaw lets the containers go on.
func (d *dump) thaw() error {
	var errs []error
	for _, c := range d.frozen {
		errs = append(errs, d.engine.opts.Cgroups.Thaw(c.rec.CgroupPath))
	}
	d.frozen = nil
	return errors.Join(errs...)
}

// capture writes one container down, which stands still.
func (p part) capture(ctx context.Context) error {
	c, e := p.c, p.c.engine
	deadline, _ := ctx.Deadline()
	// The caller may give up, but CRIU controls the processes: the call waits for it.
	err := e.opts.Shim.Checkpoint(context.WithoutCancel(ctx), shim.CheckpointRequest{
		ID: c.rec.ID, Images: p.dir.Images(), Work: string(p.dir), Deadline: max(time.Until(deadline), time.Millisecond),
	})
	if err := errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(e.bundleDir(c.rec.ID), "config.json"))
	if err != nil {
		return err
	}
	if err := p.dir.WriteContainer(c.written(), config); err != nil {
		return err
	}
	volumes, err := c.declaredPlaces()
	if err != nil {
		return err
	}
	err = p.dir.WriteChanges(func(w io.Writer) ([]string, error) { return e.opts.Images.ExportRootfs(ctx, c.rec.ID, volumes, w) })
	if err != nil {
		return err
	}
	if spec.ModesOf(c.rec.Config.M, c.sandbox.rec.Config.M).IPC != runtimeapi.NamespaceMode_POD {
		return nil
	}
	return p.dir.WriteShm(func(w io.Writer) error { return checkpoint.ExportTree(ctx, w, e.shmDir(c.rec.SandboxID)) })
}

// written tells what the container is.
func (c *container) written() checkpoint.Container {
	image := c.rec.Config.M.GetImage()
	asked := image.GetUserSpecifiedImage()
	if asked == "" {
		asked = image.GetImage()
	}
	name := asked
	if found, err := c.engine.opts.Images.Resolve(c.rec.ImageID); err == nil && len(found.Tags) > 0 {
		name = found.Tags[0]
	}
	handler := c.sandbox.rec.Handler
	if handler == "" {
		handler = c.engine.opts.Handlers.Default()
	}
	return checkpoint.Container{
		ID: c.rec.ID, Name: c.rec.Config.M.GetMetadata().GetName(), Image: asked, ImageName: name, ImageID: c.rec.ImageID,
		Runtime: handler, CreatedAt: c.rec.CreatedAt, At: time.Now(),
	}
}
