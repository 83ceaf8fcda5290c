package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim/journal"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

// lostReason is why an exit is unknown when no process held a pidfd that could tell.
const lostReason = "the process ended while no supervisor was there, and its exit status was not kept by anybody"

// doubtTime bounds the questions whether starts that were cut off had succeeded, of all containers.
const doubtTime = 10 * time.Second

// recoverAll takes over every container in the directory. What cannot be read is
// set aside and never stops the start.
func (s *Supervisor) recoverAll(ctx context.Context, handed *handover) error {
	entries, err := os.ReadDir(s.containersDir())
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, entry := range entries {
		dir := filepath.Join(s.containersDir(), entry.Name())
		rec, err := load(dir)
		if errors.Is(err, os.ErrNotExist) {
			err = ociruntime.RemoveScratch(dir) // killed before the record was written: nothing was done yet
		}
		if err != nil {
			s.log.Error("set aside a container that cannot be read", "directory", entry.Name(), "error", err)
			aside := filepath.Join(s.cfg.Dir, fmt.Sprintf("unreadable-%s-%d", entry.Name(), time.Now().UnixNano()))
			if err := os.Rename(dir, aside); err != nil {
				s.log.Error("set aside a container", "directory", entry.Name(), "error", err)
			}
			continue
		}
		if rec.ID == "" {
			continue
		}
		s.containers[rec.ID] = s.newContainer(rec)
	}
	s.sweep(ctx, s.containersDir()+"/")
	for _, c := range s.containers { // a shim-v2 must know all of its pod's containers before one of them is undone
		c.driver.join()
	}
	doubtful, cancel := context.WithTimeout(ctx, doubtTime)
	defer cancel()
	var cutOff []*container
	for _, c := range s.containers {
		if c.record().State == stateStarting && !c.gotThrough(doubtful) {
			cutOff = append(cutOff, c)
			continue
		}
		s.resume(ctx, c, handed)
	}
	s.session = handed.session
	for id, session := range handed.dropped {
		s.dropped.add(id, session)
	}
	for _, t := range handed.taps {
		if c := s.containers[t.container]; c != nil && c.io != nil {
			c.io.addTap(t.id, t.tap)
		} else {
			t.tap.close()
		}
	}
	if err := s.journal.Keep(func(id string) bool { return s.containers[id] != nil }); err != nil {
		return err
	}
	// Last of all: who is taken over must not wait for the shim-v2 of its pod.
	for _, c := range cutOff {
		s.wg.Go(c.undoCutOff)
	}
	return nil
}

// undoCutOff undoes a start that a predecessor did not finish. It holds the token, like a start.
func (c *container) undoCutOff() {
	defer c.release()
	<-c.s.swept
	c.s.log.Info("undo a start that was cut off", "container", c.id)
	if err := c.undoStart(false); err != nil {
		c.s.log.Error("undo a start that was cut off", "container", c.id, "error", err)
	}
}

// resume takes over one container, and releases its token.
func (s *Supervisor) resume(ctx context.Context, c *container, handed *handover) {
	defer c.release()
	rec := c.record()
	c.endHold(rec.Cgroup)
	if !rec.Infra {
		if err := c.resumeIO(handed.files[containerName(c.id)]); err != nil { //nolint:contextcheck // it lives as long as the container
			s.log.Error("resume the output of a container", "container", c.id, "error", err)
		}
	}
	// Looked for before the process is: it may end while it is found, and then is reported like any other.
	e, recorded := s.journal.Last(c.id)
	c.resumeInit(ctx, recorded)
	close(c.ready)
	if recorded {
		c.resumeExit(e) //nolint:contextcheck // what completes an exit has its own time
	}
	c.resumeExecs(handed) //nolint:contextcheck // they live as long as their processes
}

// gotThrough completes the record of a start whose OCI runtime had finished.
func (c *container) gotThrough(ctx context.Context) bool {
	if c.record().Infra {
		return false
	}
	pid, started, ok := c.driver.gotThrough(ctx)
	if !ok {
		return false
	}
	err := c.change(func(r *record) {
		r.State, r.PID, r.Started, r.StartedNano = stateRunning, pid, started, time.Now().UnixNano()
	})
	if err != nil {
		c.s.log.Error("complete the record of a start", "container", c.id, "error", err)
	}
	return err == nil
}

// resumeIO opens log and FIFOs again; what a predecessor handed over is used as it is.
func (c *container) resumeIO(files wire.Files) error {
	rec := c.record()
	io := newStdio(c, &rec)
	io.stdout, io.stderr, io.stdin, io.console = files[wire.Stdout], files[wire.Stderr], files[wire.Stdin], files[wire.Console]
	c.mu.Lock()
	c.io = io
	c.mu.Unlock()
	c.s.wg.Go(func() { // nothing waits for the disk of a log
		if err := io.writer.Open(context.Background(), rec.LogInode); err != nil {
			c.s.log.Error("log of a container not opened", "container", c.id, "error", err)
		}
	})
	if err := io.openFIFOs(c.dir, &rec); err != nil {
		return err
	}
	io.setConsole(io.console)
	io.run()
	return nil
}

// resumeInit finds the init process, unless its exit is recorded in the journal.
// One that is gone is lost until a client hands back a pidfd, or says that it has none.
func (c *container) resumeInit(ctx context.Context, recorded bool) {
	rec := c.record()
	c.init.pid, c.init.started = rec.PID, rec.Started
	if recorded {
		return
	}
	c.beginOOM(rec)
	c.driver.resume(ctx)
}

// followRecorded is follow for a process whose start time is on record; without
// one its ID says nothing.
func (s *Supervisor) followRecorded(p *process) bool {
	if p.started != 0 {
		return s.follow(p)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	return false
}

// resumeExit continues an exit that is in the journal.
func (c *container) resumeExit(e journal.Entry) {
	p := c.init
	p.mu.Lock()
	p.ended, p.status, p.known, p.reason, p.at = true, e.Status, e.Known, e.Reason, time.Unix(0, e.AtNano)
	p.mu.Unlock()
	close(p.done)
	if !e.Final {
		c.s.wg.Go(func() { c.finish(e) })
		return
	}
	c.mu.Lock()
	c.exit = &e
	c.mu.Unlock()
	c.s.publish(c)
	close(c.over)
}

// resumeExecs takes over the execs that a predecessor had started. One that was
// being started was reported to its client as failed, so it is ended.
func (c *container) resumeExecs(handed *handover) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		c.s.log.Error("list execs", "container", c.id, "error", err)
		return
	}
	var cutOff []*execution
	for _, entry := range entries {
		id, found := strings.CutPrefix(entry.Name(), execPrefix)
		if !found {
			continue
		}
		e, err := c.newExecution(id, "")
		if err != nil {
			c.s.log.Error("resume exec", "container", c.id, "exec", id, "error", err)
			continue
		}
		if !c.resumeExec(e, handed.files[execName(c.id, id)]) {
			cutOff = append(cutOff, e)
		}
	}
	if len(cutOff) > 0 {
		c.starts.Lock() // no other exec starts before they are undone
		c.s.wg.Go(func() {
			defer c.starts.Unlock()
			c.undoExecs(cutOff)
		})
	}
}

// resumeExec takes one exec over, unless its start was cut off. Then it returns false.
func (c *container) resumeExec(e *execution, files wire.Files) bool {
	rec, err := loadExec(e.dir)
	if err != nil {
		return false
	}
	defer close(e.ready)
	e.session, e.process.pid, e.process.started, e.console = rec.Session, rec.PID, rec.Started, files[wire.Console]
	e.stdin = files[wire.Stdin]
	c.driver.resumeExec(e)
	return true
}

// undoExecs ends execs whose start was cut off. Preconditions: the caller holds c.starts.
func (c *container) undoExecs(cutOff []*execution) {
	<-c.s.swept
	ctx, cancel := undoTime()
	defer cancel()
	for _, e := range cutOff {
		err := errors.Join(c.driver.killExec(ctx, e), c.dropExecution(e))
		if err != nil {
			c.s.log.Error("exec that was cut off not ended", "container", c.id, "exec", e.id, "error", err)
		}
	}
	if err := c.killStrays(ctx); err != nil {
		c.s.log.Error("kill execs that were cut off", "container", c.id, "error", err)
	}
	for _, e := range cutOff {
		e.err = fmt.Errorf("exec %s was cut off: %w", e.id, errdefs.ErrUnavailable)
		close(e.ready)
	}
}

// takeBack accepts what a client kept of a container or an exec: the terminal and
// the write end of a stdin, which cannot be opened by name, and a pidfd, which
// may know how a process ended that is gone.
func (s *Supervisor) takeBack(name string, files wire.Files) error {
	defer files.Close() // what is taken is taken out of it
	kind, rest, _ := strings.Cut(name, "/")
	id, execID, _ := strings.Cut(rest, "/")
	c, err := s.find(id)
	if err != nil {
		return nil // it was deleted meanwhile; the client need not know
	}
	if kind == "exec" {
		e, err := c.execution(execID)
		if err != nil {
			return nil // its start was undone, or it was released meanwhile
		}
		c.mu.Lock()
		if e.console == nil {
			e.console = files[wire.Console]
			delete(files, wire.Console)
		}
		carries := e.stdin == nil && files[wire.Stdin] != nil
		if carries {
			e.stdin = files[wire.Stdin]
			delete(files, wire.Stdin)
		}
		c.mu.Unlock()
		if carries {
			c.driver.carryStdin(e)
		}
		s.takePidfd(e.process, files)
		return nil
	}
	c.takeStdio(files)
	s.takePidfd(c.init, files)
	return nil
}

func (c *container) takeStdio(files wire.Files) {
	c.mu.Lock()
	io, closed := c.io, c.rec.StdinClosed
	c.mu.Unlock()
	if io == nil {
		return
	}
	io.mu.Lock()
	defer io.mu.Unlock()
	if io.stdin == nil && files[wire.Stdin] != nil && !closed {
		io.stdin = files[wire.Stdin]
		delete(files, wire.Stdin)
	}
	if io.console == nil && io.stdout != nil && files[wire.Console] != nil {
		io.console = files[wire.Console]
		delete(files, wire.Console)
		io.openFar()
		io.pumpConsole(io.console, io.stdout)
	}
}

func (s *Supervisor) takePidfd(p *process, files wire.Files) {
	if pidfd := files[wire.Pidfd]; pidfd != nil && p.lost() {
		s.learn(p, pidfd)
	}
}

// settle ends the wait for pidfds: what is lost now is unknown.
func (s *Supervisor) settle() {
	s.mu.Lock()
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, c)
	}
	s.mu.Unlock()
	for _, c := range list {
		if !c.isReady() {
			continue
		}
		settleProcess(c.init)
		c.mu.Lock()
		execs := make([]*execution, 0, len(c.execs))
		for _, e := range c.execs {
			execs = append(execs, e)
		}
		c.mu.Unlock()
		for _, e := range execs {
			select {
			case <-e.ready:
				settleProcess(e.process)
			default:
			}
		}
	}
}

// settleProcess gives up a process that is lost: gone, and its exit with it.
func settleProcess(p *process) {
	if p.lost() {
		p.end(0, false, lostReason, time.Now())
	}
}
