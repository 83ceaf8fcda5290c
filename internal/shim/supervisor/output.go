package supervisor

import (
	"context"
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
	// openTimeout is how long a start waits for the log to be opened. Then it goes on: the
	// container's output waits in its FIFOs for the disk of the log.
	openTimeout = 2 * time.Second
	// drainTimeout is how long an exit waits for the last output to be logged.
	drainTimeout = 2 * time.Second
	// closeTimeout is how long a deletion waits for I/O of the log to end.
	closeTimeout = time.Second
)

// stdio is everything that connects a container with the supervisor: its FIFOs or
// its terminal, the log, and attached clients.
type stdio struct {
	log      *slog.Logger
	writer   *crilog.Writer
	wg       *sync.WaitGroup
	terminal bool

	mu      sync.Mutex // guards what follows
	stdout  *os.File   // read end, non-blocking; with a terminal both ends of the FIFO behind it
	stderr  *os.File
	stdin   *os.File // write end, non-blocking
	console *os.File // master, non-blocking
	far     *os.File // the other side of console, so that it never hangs up: see openFar
	ended   bool     // the container has ended
	// drained is closed once the last output is logged; nil until the container has ended.
	drained chan struct{}

	tapsMu sync.Mutex // guards taps; never held across I/O that waits
	taps   map[string]*tap
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

// newStdio makes the stdio of c without its log, which openLog opens.
func newStdio(c *container, rec *record) *stdio {
	log, id := c.s.log, rec.ID
	o := &stdio{log: log, wg: &c.s.wg, terminal: rec.Terminal, taps: map[string]*tap{}, dropped: &c.s.dropped}
	o.writer = crilog.New(rec.logAt(), filepath.Join(c.dir, spoolFile))
	o.writer.Turns, o.writer.Limit = c.s.turns, rec.LogLimit
	o.writer.Tap, o.writer.Opened = o.copyToTaps, c.logOpened
	o.writer.Fault = func(dropped uint64, why error) {
		log.Error("container output cannot be logged", "container", id, "bytes", dropped, "error", why)
	}
	return o
}

// openLog opens the log. Output waits for a disk that hangs, and nothing else does.
func (o *stdio) openLog(ctx context.Context, id string, inode uint64) error {
	err := o.writer.Open(ctx, inode)
	if errors.Is(err, crilog.ErrHangs) {
		o.log.Error("log of a container not opened yet", "container", id, "error", err)
		return nil
	}
	return err
}

// makeFIFOs makes the FIFOs of a new container and opens both sides.
func (o *stdio) makeFIFOs(dir string, rec *record) (theirs, error) {
	var t theirs
	if rec.Terminal {
		return t, o.openFIFOs(dir, rec)
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
	var err error
	if rec.Terminal {
		if o.stdout == nil {
			o.stdout, err = openTerminalFIFO(dir)
		}
		return err
	}
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
	o.openFar()
}

// openFar opens the far side of the console: a container that closes all its ends may open
// them again. It is called with the lock held, and returns false when there will be no more output.
func (o *stdio) openFar() bool {
	if o.ended || o.console == nil {
		return false
	}
	far, err := openPeer(o.console)
	if err != nil {
		o.log.Error("far side of a terminal not opened", "error", err)
		return false
	}
	if o.far != nil {
		_ = o.far.Close() // hung up: a session that had the terminal has ended
	}
	o.far = far
	return true
}

// pumpConsole is pumpFIFO for a terminal, whose output passes through fifo.
func (o *stdio) pumpConsole(console, fifo *os.File) {
	once := func(int) int { return 1 } // a carriage return at the end waits for its line feed
	pause := time.AfterFunc(linePatience, func() { drain(fifo, once, o.all(crilog.Terminal)) })
	pause.Stop()
	o.pump(console, func(fd int) (int, error) {
		n, err := o.copyTerminal(fd, fifo, o.writer.CopyTerminal)
		switch {
		case errors.Is(err, crilog.ErrUnfinished):
			pause.Reset(linePatience)
			return 0, unix.EAGAIN
		case errors.Is(err, io.EOF):
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.openFar() {
				err = nil
			}
		default:
			pause.Stop()
		}
		return n, err
	})
}

// copyTerminal calls move with both descriptors.
func (o *stdio) copyTerminal(console int, fifo *os.File, move func(fd, fifo int) (int, error)) (int, error) {
	raw, err := fifo.SyscallConn()
	if err != nil {
		return 0, os.ErrClosed
	}
	var n int
	var failed error
	if err := raw.Control(func(fd uintptr) { n, failed = move(console, int(fd)) }); err != nil {
		return 0, os.ErrClosed
	}
	return n, failed
}

// all returns CopyAll of a stream.
func (o *stdio) all(stream crilog.Stream) func(fd int) (int, error) {
	return func(fd int) (int, error) { return o.writer.CopyAll(stream, fd) }
}

// run starts to log.
func (o *stdio) run() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.terminal {
		if o.console != nil {
			o.pumpConsole(o.console, o.stdout)
		}
		return
	}
	if o.stdout != nil {
		o.pumpFIFO(o.stdout, crilog.Stdout)
	}
	if o.stderr != nil {
		o.pumpFIFO(o.stderr, crilog.Stderr)
	}
}

// pumpFIFO is pump for a FIFO. A line that is begun stays in there until it is
// finished, or until its writer has paused for so long that a reader shall see
// what there is: a prompt, or a full FIFO of a writer that waits for us.
func (o *stdio) pumpFIFO(file *os.File, stream crilog.Stream) {
	pause := time.AfterFunc(linePatience, func() { drain(file, buffered, o.all(stream)) })
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

// drain logs what was written before the container ended, for drainTimeout at most; what takes
// longer goes on by itself. Another process may still hold the FIFO and go on writing, so
// the end is what was in it by now.
func (o *stdio) drain() error {
	o.mu.Lock()
	stdout, stderr, console, far := o.stdout, o.stderr, o.console, o.far
	o.far, o.ended = nil, true
	drained := make(chan struct{})
	o.drained = drained
	o.mu.Unlock()
	if far != nil {
		_ = far.Close() // from now on reads end
	}
	done := make(chan error, 1)
	o.wg.Go(func() {
		defer close(drained)
		if o.terminal {
			drain(console, func(int) int { return maxTerminalDrain }, func(fd int) (int, error) {
				return o.copyTerminal(fd, stdout, o.writer.DrainTerminal)
			})
			drain(stdout, buffered, o.all(crilog.Terminal))
		} else {
			drain(stdout, buffered, o.all(crilog.Stdout))
			drain(stderr, buffered, o.all(crilog.Stderr))
		}
		done <- o.writer.EndStreams()
	})
	select {
	case err := <-done:
		return err
	case <-time.After(drainTimeout):
		return crilog.ErrHangs
	}
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

// close ends logging and closes everything. Files whose reader waits for the disk of the
// log are closed once it answers.
func (o *stdio) close() error {
	o.detach(func(string, *tap) bool { return true })
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := o.writer.Close(ctx)
	if errors.Is(err, crilog.ErrHangs) {
		o.wg.Go(o.closeFiles)
		return nil
	}
	o.closeFiles()
	return err
}

func (o *stdio) closeFiles() {
	o.mu.Lock()
	files := []*os.File{o.stdout, o.stderr, o.stdin, o.console, o.far}
	o.stdout, o.stderr, o.stdin, o.console, o.far, o.ended = nil, nil, nil, nil, nil, true
	o.mu.Unlock()
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
