package crilog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	logMode = 0o640
	// faultPause is how long the same fault is not reported again.
	faultPause = time.Minute
	// logFlags open a log.
	logFlags = os.O_WRONLY | os.O_APPEND | syscall.O_CLOEXEC | syscall.O_NONBLOCK
)

// Writer writes the log of one container. Output moves from a FIFO into the log
// in a way that a SIGKILL at any instant neither loses nor repeats a byte:
//
//  1. the header of the spool file says which stream, which log and how long it is;
//  2. splice(2) moves whole lines from the FIFO to the spool: one system call,
//     whose outcome is the size of the spool;
//  3. the records are appended to the log;
//  4. the spool is emptied.
//
// A successor finds in the spool what left the FIFO, and sees from the length of
// the log how much of it has arrived. The output of a terminal is spliced to a FIFO first:
// see CopyTerminal.
//
// The disk of a log may hang. The holder of the token may wait for it for ever, so
// all others take the token with a deadline, and the mutex is never held across I/O.
type Writer struct {
	// Tap, when set, is given all output, before it is logged.
	Tap func(stream Stream, data []byte)
	// Fault, when set, is called when output is dropped, with how much it was so far, and
	// why: at once, and then every faultPause while that lasts.
	Fault func(dropped uint64, why error)
	// Opened, when set, is called with the inode of the log once Open has opened it.
	Opened func(inode uint64)
	// Limit is how many bytes of log may be written per second; 0 is no limit.
	Limit int64
	// Turns, when set, shares the writing among the containers of a node.
	Turns *Turns

	at        Location
	spoolPath string
	bucket    bucket
	closing   chan struct{} // closed by Close

	// token is held while log and spool are used. What follows belongs to its holder.
	token chan struct{}
	log   *os.File // nil: output is discarded, or cannot be logged
	spool *os.File
	// partial has the streams whose last record is a piece of a line, broken those of
	// them whose output was dropped since; noted is what the spool's header says.
	partial, broken streams
	noted           [2]streams

	mu       sync.Mutex // guards what follows; never held across I/O
	inode    uint64
	dropped  uint64
	err      error     // why output was dropped last, nil after a success
	reported time.Time // when Fault was called last
	closed   bool
}

// New returns a writer for a log, which Open opens; its output waits until then. No
// location discards output.
func New(at Location, spool string) *Writer {
	return &Writer{at: at, spoolPath: spool, token: make(chan struct{}, 1), closing: make(chan struct{})}
}

// ErrHangs says that the I/O of a log has not ended within the time given.
var ErrHangs = fmt.Errorf("I/O of the container's log does not end: %w", errdefs.ErrUnavailable)

// Open opens log and spool, and finishes what a predecessor left in the spool. It
// must be the first call. When ctx ends before the disk answers, Open returns
// ErrHangs and goes on by itself. An inode identifies the file that a
// predecessor wrote to: when the log has been renamed since, it is looked for in its
// directory and written to until Reopen; when it cannot be opened any more, output is dropped
// and counted until Reopen.
func (w *Writer) Open(ctx context.Context, inode uint64) error {
	return w.within(ctx, func() error {
		err := w.open(inode)
		if err == nil && w.Opened != nil {
			w.Opened(w.Inode())
		}
		return err
	})
}

// open is Open with the token held. The spool comes first: its directory may be removed while the
// disk of the log hangs.
func (w *Writer) open(inode uint64) error {
	var spoolErr, failed error
	if w.spool, spoolErr = os.OpenFile(w.spoolPath, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600); spoolErr != nil {
		spoolErr = fmt.Errorf("open spool: %w", spoolErr)
	}
	if !w.at.none() {
		file, err := openLog(w.at, inode)
		if err == nil {
			w.log = file
			inode, err = inodeOf(file)
		} else {
			w.setFault(err)
		}
		if inode == 0 {
			failed = err
		}
	}
	w.mu.Lock()
	w.inode = inode
	w.mu.Unlock()
	if spoolErr != nil {
		return errors.Join(failed, spoolErr)
	}
	if err := w.recover(); err != nil {
		return fmt.Errorf("finish log %s: %w", w.at, err)
	}
	return failed
}

// Inode identifies the file that is written to; 0 until it is open.
func (w *Writer) Inode() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inode
}

// Dropped returns how many bytes of output could not be logged, and why the last of them.
func (w *Writer) Dropped() (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped, w.err
}

func (w *Writer) setFault(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

// Freeze stops all output until Thaw, unless it returns an error: ErrHangs.
func (w *Writer) Freeze(ctx context.Context) error { return w.acquire(ctx) }

// Thaw ends Freeze.
func (w *Writer) Thaw() { w.release() }

// acquire takes the token.
func (w *Writer) acquire(ctx context.Context) error {
	select {
	case <-w.closing:
		return os.ErrClosed
	case <-w.token:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("log %s: %w: %w", w.at, ErrHangs, ctx.Err())
	}
}

// release gives the token back. After Close its last holder closes the files.
func (w *Writer) release() {
	w.mu.Lock()
	closed := w.closed
	if !closed {
		w.token <- struct{}{}
	}
	w.mu.Unlock()
	if closed {
		_ = w.closeFiles() // Close has returned
	}
}

// within runs fn with the token held, or for Open before the token is first given back.
// When ctx ends it returns ErrHangs, and fn goes on until the disk answers.
func (w *Writer) within(ctx context.Context, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := fn()
		w.release()
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("log %s: %w: %w", w.at, ErrHangs, ctx.Err())
	}
}

// Reopen makes a file at the log's path, if there is none, and writes there from
// now on. commit records the new inode. On an error other than ErrHangs the old file
// stays in use, and no new one exists.
func (w *Writer) Reopen(ctx context.Context, commit func(inode uint64) error) error {
	if err := w.acquire(ctx); err != nil {
		return fmt.Errorf("reopen log: %w", err)
	}
	err := w.within(ctx, func() error { return w.reopen(commit) })
	if err != nil {
		return fmt.Errorf("reopen log: %w", err)
	}
	return nil
}

// reopen is Reopen with the token held.
func (w *Writer) reopen(commit func(inode uint64) error) error {
	if w.at.none() {
		return nil
	}
	file, err := w.at.make()
	made := err == nil
	if errors.Is(err, os.ErrExist) {
		file, err = w.at.open(false)
	}
	if err != nil {
		return err
	}
	inode, err := inodeOf(file)
	if err == nil {
		err = commit(inode)
	}
	if err != nil {
		if made {
			err = errors.Join(err, w.at.remove())
		}
		return errors.Join(err, file.Close())
	}
	old := w.log
	w.log = file
	w.mu.Lock()
	w.inode = inode
	w.mu.Unlock()
	if old == nil {
		return nil
	}
	return old.Close()
}

// Close closes the files; the spool stays for a successor. When their I/O has not ended
// until ctx ends, it returns ErrHangs, and they are closed as soon as it has.
func (w *Writer) Close(ctx context.Context) error {
	err := w.acquire(ctx)
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	w.mu.Lock()
	w.closed = true
	close(w.closing)
	if err != nil { // it may have been given back meanwhile
		select {
		case <-w.token:
			err = nil
		default:
		}
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	return w.closeFiles()
}

// closeFiles is called by the last holder of the token.
func (w *Writer) closeFiles() error {
	var errs []error
	for _, f := range []*os.File{w.log, w.spool} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	w.log, w.spool = nil, nil
	return errors.Join(errs...)
}
