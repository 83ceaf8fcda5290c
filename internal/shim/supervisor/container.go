package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/internal/shim/journal"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

const (
	// leftoverTimeout bounds the killing of what an ended container left in its cgroup.
	leftoverTimeout = 5 * time.Second
	// undoTimeout bounds each step of removing a container.
	undoTimeout = 15 * time.Second
	// reopenTimeout bounds the wait for the disk of a log that is reopened.
	reopenTimeout = 30 * time.Second
)

// container is one container, or one infra process, from Start to Delete.
type container struct {
	s   *Supervisor
	id  string
	dir string
	// op holds a token; its holder may operate on the container.
	op chan struct{}
	// init is its first process. It is set before the container is found by anybody.
	init *process
	// ready is closed once Start or recovery is through; exits are not published before.
	ready chan struct{}
	// over is closed once the exit is final.
	over chan struct{}
	// unwanted is closed by Delete: a Start that still runs need not go on.
	unwanted chan struct{}
	// driver knows the container's runtime.
	driver driver
	// starts is read-locked while an OCI runtime starts an exec. Who holds it alone knows the process of
	// every exec, and may freeze the container: runtimes refuse to exec in a frozen one.
	starts sync.RWMutex

	mu      sync.Mutex // guards what follows
	rec     record
	io      *stdio
	exit    *journal.Entry // nil until it is final
	execs   map[string]*execution
	deleted bool // Delete has begun: the exit is not published
	failed  bool // Start has failed: there is no exit to record
}

func notFound(id string) error {
	return fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

// newContainer makes a container; the caller holds its token.
func (s *Supervisor) newContainer(rec record) *container {
	c := &container{
		s: s, id: rec.ID, dir: filepath.Join(s.containersDir(), rec.ID), rec: rec,
		op:    make(chan struct{}, 1), // empty: the token is the caller's
		ready: make(chan struct{}), over: make(chan struct{}), unwanted: make(chan struct{}), execs: map[string]*execution{},
	}
	c.init = newProcess(c.ended)
	c.driver = c.driverOf(&rec)
	return c
}

// acquire takes the token; nil means that the caller must give it back.
func (c *container) acquire(ctx context.Context) error {
	select {
	case <-c.op:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another operation on container %s: %w", c.id, ctx.Err())
	}
}

func (c *container) release() { c.op <- struct{}{} }

// abandon ends a Start that still waits for the OCI runtime, so that Delete need not.
func (c *container) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.unwanted:
	default:
		close(c.unwanted)
	}
}

// record returns a copy of the record.
func (c *container) record() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// change changes the record, on disk first. A container that is being deleted has none to change.
func (c *container) change(fn func(r *record)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted {
		return notFound(c.id)
	}
	next := c.rec
	fn(&next)
	if err := save(filepath.Join(c.dir, recordFile), next); err != nil {
		return err
	}
	c.rec = next
	return nil
}

// logOpened records the file that the log is written to. A start saves the record later.
func (c *container) logOpened(inode uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.LogInode == inode || c.deleted {
		return
	}
	c.rec.LogInode = inode
	if c.rec.State != stateRunning {
		return
	}
	if err := save(filepath.Join(c.dir, recordFile), c.rec); err != nil {
		c.s.log.Error("log file of a container not recorded", "container", c.id, "error", err)
	}
}

// logReopened records the new file of the log, on disk first.
func (c *container) logReopened(inode uint64) error {
	return c.change(func(r *record) { r.LogInode = inode })
}

// ended is called by the reaper, or by the code that learned of the exit. The zombie is still there.
func (c *container) ended(p *process) {
	p.mu.Lock()
	e := journal.Entry{ID: c.id, Status: p.status, Known: p.known, Reason: p.reason, AtNano: p.at.UnixNano()}
	p.mu.Unlock()
	if err := c.s.journal.Append(e); err != nil {
		c.s.log.Error("record exit", "container", c.id, "error", err)
	}
	c.s.wg.Go(func() { c.finish(e) })
}

// finish completes an exit: everything that must happen before it is published.
func (c *container) finish(e journal.Entry) {
	<-c.ready
	defer close(c.over)
	rec := c.record()
	if c.startFailed() {
		return
	}
	if rec.Cgroup != "" && !rec.Infra {
		kills, err := c.s.ooms.end(rec.Cgroup)
		if err != nil {
			c.s.log.Error("read OOM kills", "container", c.id, "error", err)
		}
		e.OOM = kills > 0
		ctx, cancel := context.WithTimeout(context.Background(), leftoverTimeout)
		if err := c.s.cfg.Cgroups.KillAll(ctx, rec.Cgroup); err != nil {
			c.s.log.Error("kill what an ended container left", "container", c.id, "error", err)
		}
		cancel()
	}
	c.mu.Lock()
	io := c.io
	c.mu.Unlock()
	ctx, cancel := undoTime()
	c.driver.settle(ctx)
	cancel()
	if io != nil {
		if err := io.drain(); err != nil {
			c.s.log.Error("last output of a container not logged yet", "container", c.id, "error", err)
		}
		io.detach(func(string, *tap) bool { return true })
		if dropped, err := io.writer.Dropped(); dropped > 0 {
			c.s.log.Error("container output was not logged", "container", c.id, "bytes", dropped, "last_error", err)
		}
	}
	// The clock may have been set back, and the OCI runtime reports a start after the process may have ended.
	e.Final, e.AtNano = true, max(e.AtNano, rec.StartedNano)
	if err := c.s.journal.Append(e); err != nil {
		c.s.log.Error("record exit", "container", c.id, "error", err)
	}
	c.mu.Lock()
	c.exit = &e
	deleted := c.deleted
	c.mu.Unlock()
	if !deleted {
		c.s.publish(c)
	}
}

func (c *container) startFailed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// exitMessage is the exit on the wire; nil while there is none.
func (c *container) exitMessage() *wire.Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exit == nil {
		return nil
	}
	m := &wire.Exit{Id: c.id, Code: unknownCode, Known: c.exit.Known, Oom: c.exit.OOM, Reason: c.exit.Reason, AtNano: c.exit.AtNano}
	if c.exit.Known {
		code, sig := decode(c.exit.Status)
		m.Code, m.Signal = int32(code), int32(sig)
	}
	return m
}

// state is the container on the wire.
func (c *container) state() *wire.ContainerState {
	rec := c.record()
	m := &wire.ContainerState{
		Id: c.id, SandboxId: rec.SandboxID, Pid: int32(rec.PID), StartedNano: rec.StartedNano, Exit: c.exitMessage(),
	}
	m.Running = m.Exit == nil
	c.mu.Lock()
	io := c.io
	c.mu.Unlock()
	if io != nil {
		m.DroppedLogBytes, _ = io.writer.Dropped()
	}
	return m
}

// pod is the pod that the container belongs to.
func (c *container) pod() string {
	rec := c.record()
	return cmp.Or(rec.SandboxID, rec.ID)
}

// isReady tells whether Start is through.
func (c *container) isReady() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// running returns nil while the init process runs.
func (c *container) running() error {
	if !c.isReady() || !c.init.running() {
		return fmt.Errorf("container %s is not running: %w", c.id, errdefs.ErrNotFound)
	}
	return nil
}

// kill signals the container.
func (c *container) kill(ctx context.Context, sig syscall.Signal) error {
	if err := c.running(); err != nil {
		return err
	}
	return c.driver.kill(ctx, sig)
}

// signalInit signals the init process by its pidfd.
func (c *container) signalInit(ctx context.Context, sig syscall.Signal) error {
	pidfd := c.init.fd()
	if pidfd == nil {
		return fmt.Errorf("container %s has no pidfd: %w", c.id, errdefs.ErrNotFound)
	}
	if err := proc.Signal(pidfd, sig); err != nil {
		return fmt.Errorf("signal process %d: %w", c.init.pid, err)
	}
	if sig == syscall.SIGKILL {
		c.s.expectEnd(ctx, c.init)
	}
	return nil
}

// killAll kills every process of the container.
func (c *container) killAll(ctx context.Context) error {
	defer c.s.expectEnd(ctx, c.init)
	rec := c.record()
	if rec.Cgroup == "" || rec.Infra {
		if err := c.kill(ctx, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		return nil
	}
	return c.driver.killAll(ctx)
}

// delete makes the container gone, whatever state it is in. Preconditions: the
// caller holds the token, which is never given back after a success.
func (c *container) delete(ctx context.Context) error {
	c.mu.Lock()
	c.deleted = true
	c.mu.Unlock()
	started := c.isReady() && !c.startFailed()
	if started && c.init.running() {
		if err := c.endNow(ctx); err != nil {
			return err
		}
	}
	if started {
		select {
		case <-c.over:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of container %s: %w", c.id, ctx.Err())
		}
	}
	rec := c.record()
	if !rec.Infra {
		if err := c.deleteFromRuntime(rec); err != nil { //nolint:contextcheck // a clean-up has its own time
			return err
		}
	}
	return c.dispose() //nolint:contextcheck // a clean-up has its own deadline
}

// endNow kills the container and waits until its init process has ended.
func (c *container) endNow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	if err := c.killAll(ctx); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	// Its init may have left the cgroup, or have none.
	if err := c.kill(ctx, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	select {
	case <-c.init.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the killed process %d of container %s: %w", c.init.pid, c.id, ctx.Err())
	}
}

// deleteFromRuntime removes a container without processes from its OCI runtime.
// When the runtime cannot do that, what it left is removed without it.
func (c *container) deleteFromRuntime(rec record) error {
	ctx, cancel := undoTime()
	defer cancel()
	err := c.driver.delete(ctx, rec)
	if err == nil || errdefs.IsNotFound(err) {
		if rec.State == stateRunning || rec.Handler.Root == "" {
			return nil
		}
		// A runtime that was killed has left what it does not call a container yet.
		return ociruntime.RemoveState(rec.Handler, c.id)
	}
	c.s.log.Warn("OCI runtime cannot delete a container, removing what it left", "container", c.id, "error", err)
	undo, cancelUndo := context.WithTimeout(context.Background(), undoTimeout)
	defer cancelUndo()
	var errs []error
	if rec.Cgroup != "" {
		errs = append(errs, c.s.cfg.Cgroups.KillAll(undo, rec.Cgroup), c.s.cfg.Cgroups.Remove(rec.Cgroup))
	}
	if rec.Handler.Root != "" {
		errs = append(errs, ociruntime.RemoveState(rec.Handler, c.id))
	}
	if undoErr := errors.Join(errs...); undoErr != nil {
		return errors.Join(fmt.Errorf("delete container %s: %w", c.id, err), undoErr)
	}
	return nil
}

// dispose closes and removes what this process keeps of the container.
func (c *container) dispose() error {
	var errs []error
	c.mu.Lock()
	io, execs := c.io, c.execs
	c.io, c.execs = nil, map[string]*execution{}
	c.mu.Unlock()
	for _, e := range execs {
		e.close()
	}
	if io != nil {
		errs = append(errs, c.s.closeOutput(c.id, io))
	}
	c.init.close()
	errs = append(errs, ociruntime.RemoveScratch(c.dir), c.s.journal.Forget(c.id))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove record of container %s: %w", c.id, err)
	}
	c.s.forget(c)
	return nil
}
