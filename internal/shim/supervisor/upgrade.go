package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/ociruntime"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

const (
	// HandoverFlag is the flag that tells a program the memfd of its predecessor.
	HandoverFlag = "--handover-fd"
	// quiesceTimeout bounds the wait for operations under way before an upgrade.
	quiesceTimeout = 30 * time.Second
	// freezeTimeout bounds the wait for output that is being logged; it is shorter than drainTimeout.
	freezeTimeout = time.Second
	// maxHandover bounds the description in a memfd.
	maxHandover = 16 << 20
)

// handoverNote is what the memfd holds: names and numbers of descriptors that stay open.
type handoverNote struct {
	Version int                       `json:"version"`
	Lock    int                       `json:"lock"`
	RPC     int                       `json:"rpc"`
	FDs     int                       `json:"fds"`
	Session string                    `json:"session"`
	Files   map[string]map[string]int `json:"files"`
	Taps    []tapNote                 `json:"taps"`
	// Dropped has the sessions of the attachments whose reader was too slow.
	Dropped map[string]string `json:"dropped,omitempty"`
}

type tapNote struct {
	Container string `json:"container"`
	ID        string `json:"id"`
	Session   string `json:"session"`
	Stdin     bool   `json:"stdin"`
	Stdout    int    `json:"stdout"`
	Stderr    int    `json:"stderr"` // -1 with a terminal
}

// handover is the note with its descriptors opened.
type handover struct {
	lock, rpc, fds *os.File
	session        string
	files          map[string]wire.Files
	taps           []restoredTap
	dropped        map[string]string
}

// restoredTap is an attachment that goes on.
type restoredTap struct {
	container, id string
	tap           *tap
}

// readHandover takes over what a predecessor left open. Without one it is empty.
func readHandover(memfd *os.File) (*handover, error) {
	h := &handover{files: map[string]wire.Files{}}
	if memfd == nil {
		return h, nil
	}
	defer func() { _ = memfd.Close() }()
	text, err := io.ReadAll(io.LimitReader(memfd, maxHandover))
	if err != nil {
		return nil, fmt.Errorf("read handover: %w", err)
	}
	var note handoverNote
	if err := json.Unmarshal(text, &note); err != nil || note.Version != recordVersion {
		return nil, fmt.Errorf("parse handover of version %d: %w", note.Version, errors.Join(err, errdefs.ErrInternal))
	}
	take := func(fd int, name string) *os.File {
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), name)
	}
	h.lock, h.rpc, h.fds = take(note.Lock, "lock"), take(note.RPC, "rpc"), take(note.FDs, "fds")
	h.session, h.dropped = note.Session, note.Dropped
	for _, t := range note.Taps {
		restored := restoredTap{t.Container, t.ID, &tap{session: t.Session, stdin: t.Stdin}}
		restored.tap.stdout = take(t.Stdout, "attach")
		if t.Stderr >= 0 {
			restored.tap.stderr = take(t.Stderr, "attach")
		}
		h.taps = append(h.taps, restored)
	}
	for name, kinds := range note.Files {
		h.files[name] = wire.Files{}
		for kind, fd := range kinds {
			h.files[name][kind] = take(fd, kind)
		}
	}
	return h, nil
}

// upgrade executes another program in this process. It returns only to say why it did not.
func (s *Supervisor) upgrade(ctx context.Context, binary string) error {
	if !filepath.IsAbs(binary) {
		return fmt.Errorf("upgrade: program %q is not an absolute path: %w", binary, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithTimeout(ctx, quiesceTimeout)
	defer cancel()
	if code, err := s.children.Run(ctx, &ociruntime.Command{Path: binary, Args: []string{"--version"}}); err != nil || code != 0 {
		return fmt.Errorf("upgrade: try %s: code %d: %w", binary, code, errors.Join(err, errdefs.ErrFailedPrecondition))
	}
	if err := s.gate.close(ctx); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer s.gate.open()
	thaw, err := s.freeze(ctx)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer thaw()
	note, keep, err := s.describe()
	defer func() {
		for _, f := range keep {
			_ = f.Close()
		}
	}()
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	return fmt.Errorf("upgrade: %w", s.execute(binary, note, keep))
}

// freeze stops the output of all containers. A log whose I/O does not end refuses the upgrade: a
// program cannot be replaced while one of its threads waits for a disk.
func (s *Supervisor) freeze(ctx context.Context) (thaw func(), err error) {
	if err := s.checkLogged(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	var frozen []*stdio
	thaw = func() {
		for _, io := range frozen {
			io.writer.Thaw()
		}
	}
	for _, io := range s.outputs() {
		if err := io.writer.Freeze(ctx); err != nil && !errors.Is(err, os.ErrClosed) {
			thaw()
			return nil, err
		} else if err == nil {
			frozen = append(frozen, io)
		}
	}
	return thaw, nil
}

// outputs returns the stdio of all containers.
func (s *Supervisor) outputs() []*stdio {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*stdio
	for _, c := range s.containers {
		c.mu.Lock()
		if c.io != nil {
			list = append(list, c.io)
		}
		c.mu.Unlock()
	}
	return list
}

// describe duplicates every descriptor that must survive and writes them down.
func (s *Supervisor) describe() (*handoverNote, []*os.File, error) {
	d := &description{note: handoverNote{Version: recordVersion, Files: map[string]map[string]int{}}}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.note.Session, d.note.Dropped = s.session, s.dropped.list()
	d.note.Lock = d.add(s.lock)
	rpc, err := listenerFile(s.clients.Listener)
	d.fail(err)
	fds, err := s.fds.File()
	d.fail(err)
	d.keep = append(d.keep, rpc, fds)
	d.note.RPC, d.note.FDs = d.number(rpc), d.number(fds)
	for _, c := range s.containers {
		c.mu.Lock()
		d.addContainer(c)
		c.mu.Unlock()
	}
	return &d.note, d.keep, d.err
}

func listenerFile(l any) (*os.File, error) {
	filer, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("listener %T has no descriptor: %w", l, errdefs.ErrInternal)
	}
	return filer.File()
}

// description collects descriptors; the first error sticks.
type description struct {
	note handoverNote
	keep []*os.File
	err  error
}

func (d *description) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// number returns the descriptor of a file that is kept. Fd is of no use: it
// changes the blocking mode of the open file.
func (d *description) number(f *os.File) int {
	n := -1
	if f == nil {
		d.fail(os.ErrInvalid)
		return n
	}
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n = int(fd) })
	}
	d.fail(err)
	return n
}

// add keeps a duplicate of f, -1 when there is none.
func (d *description) add(f *os.File) int {
	if f == nil {
		return -1
	}
	dup, err := wire.Dup(f)
	if err != nil {
		d.fail(err)
		return -1
	}
	d.keep = append(d.keep, dup)
	return d.number(dup)
}

// addContainer is called with the container's lock held and its output frozen.
func (d *description) addContainer(c *container) {
	if c.io != nil {
		c.io.mu.Lock()
		files := wire.Files{wire.Stdout: c.io.stdout, wire.Stderr: c.io.stderr, wire.Stdin: c.io.stdin, wire.Console: c.io.console}
		d.addFiles(containerName(c.id), files)
		c.io.mu.Unlock()
		c.io.tapsMu.Lock()
		defer c.io.tapsMu.Unlock()
		for id, t := range c.io.taps {
			d.note.Taps = append(d.note.Taps, tapNote{
				Container: c.id, ID: id, Session: t.session, Stdin: t.stdin, Stdout: d.add(t.stdout), Stderr: d.add(t.stderr),
			})
		}
	}
	for id, e := range c.execs {
		d.addFiles(execName(c.id, id), wire.Files{wire.Console: e.console, wire.Stdin: e.stdin})
	}
}

func (d *description) addFiles(name string, files wire.Files) {
	d.note.Files[name] = map[string]int{}
	for kind, f := range files {
		if fd := d.add(f); fd >= 0 {
			d.note.Files[name][kind] = fd
		}
	}
}

// execute puts the note into a memfd and executes the program.
func (s *Supervisor) execute(binary string, note *handoverNote, keep []*os.File) error {
	text, err := json.Marshal(note)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("berth-shim-handover", 0) // stays open in the successor
	if err != nil {
		return fmt.Errorf("make memfd: %w", err)
	}
	memfd := os.NewFile(uintptr(fd), "handover")
	defer func() { _ = memfd.Close() }()
	if _, err := memfd.Write(text); err != nil {
		return fmt.Errorf("write handover: %w", err)
	}
	if _, err := memfd.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("write handover: %w", err)
	}
	d := &description{}
	// No child may be forked while the descriptors are not close-on-exec.
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	for _, f := range keep {
		if _, err := unix.FcntlInt(uintptr(d.number(f)), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep descriptor: %w", err)
		}
	}
	args := append([]string{binary}, s.cfg.Args...)
	return fmt.Errorf("execute %s: %w", binary, syscall.Exec(binary, append(args, HandoverFlag, strconv.Itoa(fd)), os.Environ()))
}
