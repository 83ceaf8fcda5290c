package supervisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/ociruntime/shimv2"
	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/internal/shim/wire"
	"github.com/berth-runtime/berth/internal/text"
)

const (
	// hostFile is the record of a shim-v2 process in its directory.
	hostFile = "host.json"
	// maxShimLine bounds a line of a shim's log.
	maxShimLine = 8 << 10
)

// host is a shim-v2 process. It serves the containers of one pod, as it does under
// containerd: the first one starts it, the last one ends it.
//
//	<state>/shim/v2/<pod>/   host.json, log: the FIFO that the shim writes its log to, scratch of its OCI runtime
type host struct {
	s   *Supervisor
	dir string
	// op holds a token; its holder may begin or end tasks.
	op chan struct{}
	// tasks are the containers that the shim may know; guarded by Supervisor.mu.
	tasks map[string]bool

	// What follows is guarded by the token.
	conn *shimv2.Conn
	note hostNote
	log  *os.File
}

// hostNote is what a successor must know of a shim.
type hostNote struct {
	Endpoint shimv2.Endpoint `json:"endpoint"`
	PID      int             `json:"pid,omitempty"`
	Started  uint64          `json:"started,omitempty"`
}

// shimProgram finds the program of a shim-v2. It sends its events to this
// process, where they are dropped: what counts, Wait tells.
func (s *Supervisor) shimProgram(h ociruntime.Handler) (*shimv2.Program, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	return shimv2.New(h, s.children, filepath.Join(s.cfg.Dir, wire.Socket), self)
}

// hostOf returns the host of a pod and counts a container among its tasks.
func (s *Supervisor) hostOf(rec *record) *host {
	group := rec.SandboxID
	if group == "" || checkID("sandbox ID", group) != nil {
		group = rec.ID
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hosts[group]
	if h == nil {
		h = &host{s: s, dir: filepath.Join(s.cfg.Dir, "v2", group), op: make(chan struct{}, 1), tasks: map[string]bool{}}
		h.op <- struct{}{}
		s.hosts[group] = h
	}
	h.tasks[rec.ID] = true
	return h
}

// leave uncounts a container and tells whether it was the last one. Then it is the
// caller's to end the host. Preconditions: the caller holds the token.
func (h *host) leave(id string) (last bool) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	delete(h.tasks, id)
	return len(h.tasks) == 0
}

// forget drops a host that was ended, unless a container has joined it meanwhile,
// which waits for the token and then starts a shim of its own.
func (h *host) forget() {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if len(h.tasks) == 0 {
		delete(h.s.hosts, filepath.Base(h.dir))
	}
}

func (h *host) acquire(ctx context.Context) error {
	select {
	case <-h.op:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another operation on the shim of a pod: %w", ctx.Err())
	}
}

func (h *host) release() { h.op <- struct{}{} }

// connect returns the connection to the shim that was started, ErrGone when it has
// died, ErrNotFound when none was started. Preconditions: the caller holds the token.
func (h *host) connect(ctx context.Context) (*shimv2.Conn, error) {
	if h.conn != nil {
		select {
		case <-h.conn.Gone():
			h.conn = nil
		default:
			return h.conn, nil
		}
	}
	if h.note.Endpoint.Address == "" {
		text, err := readRecord(filepath.Join(h.dir, hostFile))
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("no shim was started: %w", errdefs.ErrNotFound)
		}
		if err == nil {
			err = json.Unmarshal(text, &h.note)
		}
		if err != nil {
			return nil, fmt.Errorf("read record of shim: %w", err)
		}
	}
	if err := h.followLog(); err != nil { //nolint:contextcheck // it lives as long as the shim
		return nil, err
	}
	conn, err := shimv2.Dial(ctx, h.note.Endpoint)
	if err != nil {
		return nil, err
	}
	h.conn = conn
	return conn, nil
}

// open connects to the shim and starts one when there is none. Preconditions: the
// caller holds the token.
func (h *host) open(ctx context.Context, program *shimv2.Program, rec *record) (*shimv2.Conn, error) {
	conn, err := h.connect(ctx)
	switch {
	case errors.Is(err, shimv2.ErrGone): // and its containers with it
		if err := h.dismantle(ctx); err != nil {
			return nil, err
		}
	case !errdefs.IsNotFound(err):
		return conn, err
	}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of shim: %w", err)
	}
	fifo, link := filepath.Join(h.dir, shimv2.LogFIFO), filepath.Join(rec.Bundle, shimv2.LogFIFO)
	if err := unix.Mkfifo(fifo, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make log of shim: %w", err)
	}
	if err := os.Symlink(fifo, link); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make log of shim: %w", err)
	}
	if err := h.followLog(); err != nil { //nolint:contextcheck // it lives as long as the shim
		return nil, err
	}
	note := hostNote{}
	if note.Endpoint, err = program.Start(ctx, h.dir, rec.Bundle, rec.ID); err != nil {
		return nil, err
	}
	if err := save(filepath.Join(h.dir, hostFile), note); err != nil {
		return nil, err
	}
	h.note = note
	return h.connect(ctx)
}

// learnPID notes the shim's process, to see that it ends. Preconditions: the caller
// holds the token, and the shim has a container.
func (h *host) learnPID(ctx context.Context, id string) error {
	if h.note.PID != 0 || h.conn == nil {
		return nil
	}
	pid, err := h.conn.PID(ctx, id)
	if err != nil {
		return err
	}
	stat, err := proc.Read(pid)
	if err != nil {
		return err
	}
	h.note.PID, h.note.Started = pid, stat.Started
	return save(filepath.Join(h.dir, hostFile), h.note)
}

// followLog copies what the shim has to say into the supervisor's log.
func (h *host) followLog() error {
	if h.log != nil {
		return nil
	}
	// Read-write, so that the reader sees no end while there is no writer.
	f, err := os.OpenFile(filepath.Join(h.dir, shimv2.LogFIFO), os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open log of shim: %w", err)
	}
	h.log = f
	h.s.wg.Go(func() {
		lines := bufio.NewReaderSize(f, maxShimLine)
		for {
			line, _, err := lines.ReadLine()
			if err != nil {
				return // closed
			}
			level := slog.LevelWarn
			if bytes.Contains(line, []byte("level=info")) || bytes.Contains(line, []byte("level=debug")) {
				level = slog.LevelDebug
			}
			h.s.log.Log(context.Background(), level, "shim-v2", "pod", filepath.Base(h.dir), "says", text.Line(string(line)))
		}
	})
	return nil
}

// end ends the shim and removes what is left of it. Preconditions: the caller holds
// the token, and leave has reported that no task is left.
func (h *host) end(ctx context.Context, id string) error {
	if h.conn != nil {
		if err := h.conn.Shutdown(ctx, id); err != nil {
			h.s.log.Warn("shut shim down", "pod", filepath.Base(h.dir), "error", err)
		}
	}
	err := h.dismantle(ctx)
	h.forget()
	return err
}

// dismantle removes what is left of a shim that ends or has died. Preconditions:
// the caller holds the token.
func (h *host) dismantle(ctx context.Context) error {
	errs := []error{h.kill(ctx)}
	if h.conn != nil {
		_ = h.conn.Close() // the shim may have closed it
		h.conn = nil
	}
	if h.log != nil {
		_ = h.log.Close()
		h.log = nil
	}
	if h.note.Endpoint.Address != "" {
		errs = append(errs, shimv2.RemoveSocket(h.note.Endpoint))
	}
	h.note = hostNote{}
	return errors.Join(append(errs, ociruntime.RemoveScratch(h.dir))...)
}

// kill waits for the end of the shim's process, which is at hand, and enforces it.
func (h *host) kill(ctx context.Context) error {
	return h.onProcess(func(pidfd *os.File) error {
		bounded, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		if proc.AwaitEnd(bounded, pidfd) == nil {
			return nil
		}
		if err := killShim(pidfd); err != nil {
			return err
		}
		return proc.AwaitEnd(ctx, pidfd)
	})
}

// killNow ends a shim that does not do what it is asked. Its containers are lost.
func (h *host) killNow() error { return h.onProcess(killShim) }

// onProcess does something to the shim's process, unless that has ended.
func (h *host) onProcess(do func(pidfd *os.File) error) error {
	if h.note.PID == 0 {
		return nil
	}
	pidfd, err := proc.Open(h.note.PID, h.note.Started)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find shim: %w", err)
	}
	defer func() { _ = pidfd.Close() }()
	return do(pidfd)
}

func killShim(pidfd *os.File) error {
	if err := proc.Signal(pidfd, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("kill shim: %w", err)
	}
	return nil
}
