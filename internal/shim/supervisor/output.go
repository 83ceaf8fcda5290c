package supervisor

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/shim/crilog"
)

const (
	// maxTerminalDrain bounds what is read from a terminal after its container ended.
	maxTerminalDrain = 1 << 20
	// linePatience is how long the beginning of a line waits for its end.
	linePatience = 100 * time.Millisecond
)

// stdio is everything that connects a container with the supervisor: its FIFOs or
// its terminal, the log, and whoever is attached.
type stdio struct {
	log    *slog.Logger
	writer *crilog.Writer
	wg     *sync.WaitGroup

	mu      sync.Mutex // guards what follows
	stdout  *os.File   // read end, non-blocking
	stderr  *os.File
	stdin   *os.File // write end, non-blocking
	console *os.File // master, non-blocking

	// taps is guarded by the writer's lock, under which output passes.
	taps map[string]*tap
	// dropped gets the readers of taps that were too slow.
	dropped *droppedReaders
}

// theirs are the container's ends.
type theirs struct{ stdin, stdout, stderr *os.File }

func (t theirs) close() {
	for _, f := range []*os.File{t.stdin, t.stdout, t.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func newStdio(s *Supervisor, dir string, rec *record) (*stdio, error) {
	writer, err := crilog.Open(rec.logAt(), filepath.Join(dir, spoolFile), rec.LogInode)
	if err != nil {
		return nil, err
	}
	rec.LogInode = writer.Inode()
	o := &stdio{log: s.log, writer: writer, wg: &s.wg, taps: map[string]*tap{}, dropped: &s.dropped}
	writer.Tap = o.copyToTaps
	id := rec.ID
	writer.Fault = func(dropped uint64, why error) {
		s.log.Error("container output cannot be logged", "container", id, "bytes", dropped, "error", why)
	}
	return o, nil
}

// makeFIFOs makes the FIFOs of a new container and opens both sides.
func (o *stdio) makeFIFOs(dir string, rec *record) (theirs, error) {
	var t theirs
	if rec.Terminal {
		return t, nil
	}
	names := []string{stdoutFIFO, stderrFIFO}
	if rec.Stdin {
		names = append(names, stdinFIFO)
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := makeFIFO(path, rec.Label); err != nil {
			return t, err
		}
	}
	var err error
	// Read-write on the container's side: there is always a reader, so that it gets
	// no SIGPIPE while there is no supervisor.
	if t.stdout, err = openFIFO(dir, stdoutFIFO, unix.O_RDWR); err != nil {
		return t, err
	}
	if t.stderr, err = openFIFO(dir, stderrFIFO, unix.O_RDWR); err != nil {
		return t, err
	}
	if rec.Stdin {
		// Stdin that is to end some day must not have the container itself as a writer;
		// the open must not wait for one, the reads must.
		mode := unix.O_RDWR
		if rec.StdinOnce {
			mode = unix.O_RDONLY | unix.O_NONBLOCK
		}
		if t.stdin, err = openFIFO(dir, stdinFIFO, mode); err != nil {
			return t, err
		}
	}
	if err := o.openFIFOs(dir, rec); err != nil {
		return t, err
	}
	if t.stdin != nil {
		if err := unix.SetNonblock(int(t.stdin.Fd()), false); err != nil {
			return t, fmt.Errorf("make stdin blocking: %w", err)
		}
	}
	return t, nil
}

// openFIFOs opens the supervisor's side.
func (o *stdio) openFIFOs(dir string, rec *record) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if rec.Terminal {
		return nil
	}
	var err error
	if o.stdout == nil {
		if o.stdout, err = openFIFO(dir, stdoutFIFO, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
			return err
		}
	}
	if o.stderr == nil {
		if o.stderr, err = openFIFO(dir, stderrFIFO, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
			return err
		}
	}
	if rec.Stdin && !rec.StdinClosed && o.stdin == nil {
		o.stdin, err = openFIFO(dir, stdinFIFO, unix.O_WRONLY|unix.O_NONBLOCK)
		if errors.Is(err, unix.ENXIO) {
			return nil // the container has closed its stdin
		}
	}
	return err
}

// setConsole takes the master side of the container's terminal.
func (o *stdio) setConsole(console *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.console = console
}

// run starts to log.
func (o *stdio) run() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stdout != nil {
		o.pumpFIFO(o.stdout, crilog.Stdout)
	}
	if o.stderr != nil {
		o.pumpFIFO(o.stderr, crilog.Stderr)
	}
	if o.console != nil {
		o.pump(o.console, o.writer.CopyTerminal)
	}
}

// pumpFIFO is pump for a FIFO. A line that is begun stays in there until it is
// finished, or until its writer has paused for so long that a reader shall see
// what there is: a prompt, or a full FIFO of a writer that waits for us.
func (o *stdio) pumpFIFO(file *os.File, stream crilog.Stream) {
	all := func(fd int) (int, error) { return o.writer.CopyAll(stream, fd) }
	pause := time.AfterFunc(linePatience, func() { drain(file, buffered, all) })
	pause.Stop()
	o.pump(file, func(fd int) (int, error) {
		n, err := o.writer.Copy(stream, fd)
		if errors.Is(err, crilog.ErrUnfinished) {
			pause.Reset(linePatience)
			return 0, unix.EAGAIN
		}
		pause.Stop()
		return n, err
	})
}

// pump copies until the last writer is gone or the file is closed. While there is
// nothing to copy it holds no buffer.
func (o *stdio) pump(file *os.File, move func(fd int) (int, error)) {
	raw, err := file.SyscallConn()
	if err != nil {
		o.log.Error("read output", "file", file.Name(), "error", err)
		return
	}
	o.wg.Go(func() {
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			for {
				_, err := move(int(fd))
				switch {
				case err == nil:
				case errors.Is(err, unix.EAGAIN):
					return false
				default:
					failed = err
					return true
				}
			}
		})
		if err == nil && !errors.Is(failed, io.EOF) && !errors.Is(failed, os.ErrClosed) {
			o.log.Error("read output", "file", file.Name(), "error", failed)
		}
	})
}

// drain logs what was written before the container ended. Another process may
// still hold the FIFO and go on writing, so the end is what was in it by now.
func (o *stdio) drain() {
	o.mu.Lock()
	stdout, stderr, console := o.stdout, o.stderr, o.console
	o.mu.Unlock()
	drain(stdout, buffered, func(fd int) (int, error) { return o.writer.CopyAll(crilog.Stdout, fd) })
	drain(stderr, buffered, func(fd int) (int, error) { return o.writer.CopyAll(crilog.Stderr, fd) })
	drain(console, func(int) int { return maxTerminalDrain }, o.writer.CopyTerminal)
}

func buffered(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

func drain(file *os.File, amount func(fd int) int, move func(fd int) (int, error)) {
	if file == nil {
		return
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return // closed
	}
	_ = raw.Control(func(fd uintptr) { // fails only when the file is closed
		for left := amount(int(fd)); left > 0; {
			n, err := move(int(fd))
			if err != nil {
				return
			}
			left -= n
		}
	})
}

// closeStdin closes the supervisor's write end.
func (o *stdio) closeStdin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stdin != nil {
		_ = o.stdin.Close()
		o.stdin = nil
	}
}

// close ends logging and closes everything.
func (o *stdio) close() error {
	o.mu.Lock()
	for _, f := range []**os.File{&o.stdout, &o.stderr, &o.stdin, &o.console} {
		if *f != nil {
			_ = (*f).Close()
			*f = nil
		}
	}
	o.mu.Unlock()
	o.detach(func(string, *tap) bool { return true })
	return o.writer.Close()
}
