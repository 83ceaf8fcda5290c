package crilog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// batch is how much output is moved at once: the capacity of a pipe.
	batch = 64 << 10
	// flushAt is how many formatted bytes are written at once.
	flushAt = 128 << 10
	// spoolHeader is the size of the header of a spool file; data is behind it.
	spoolHeader = 32
	spoolMagic  = 0x314c4f4f50534252 // "RBSPOOL1"
	logMode     = 0o640
	// faultPause is how long the same fault is not told again.
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
// the log how much of it has arrived. Only reads from a terminal, which cannot be
// spliced to a file, have a gap between the read and the write.
type Writer struct {
	// Tap, when set, is given all output, before it is logged.
	Tap func(stream Stream, data []byte)
	// Fault, when set, is told that output is dropped, how much it was so far, and
	// why: at once, and then every faultPause while that lasts.
	Fault func(dropped uint64, why error)

	mu      sync.Mutex // guards what follows
	at      Location
	log     *os.File // nil: output is discarded, or cannot be logged
	inode   uint64
	spool   *os.File
	dropped uint64
	err     error     // why output was dropped last, nil after a success
	told    time.Time // when Fault was called last
}

var (
	inPool  = sync.Pool{New: func() any { b := make([]byte, batch); return &b }}
	outPool = sync.Pool{New: func() any { b := make([]byte, 0, flushAt+MaxLine+128); return &b }}
)

// Open opens the log, and the spool, and finishes what a predecessor left
// in the spool. An inode says which file that predecessor wrote to: when the log
// has been renamed since, it is looked for in its directory and written to until
// Reopen; when it cannot be opened any more, output is dropped and counted until
// Reopen. No location discards output.
func Open(at Location, spool string, inode uint64) (*Writer, error) {
	w := &Writer{at: at}
	if !at.none() {
		file, err := openLog(at, inode)
		switch {
		case err == nil:
			w.log = file
			if w.inode, err = inodeOf(file); err != nil {
				return nil, errors.Join(err, file.Close())
			}
		case inode == 0:
			return nil, err
		default:
			w.inode, w.err = inode, err
		}
	}
	var err error
	if w.spool, err = os.OpenFile(spool, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("open spool: %w", err), w.Close())
	}
	if err := w.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("finish log %s: %w", at, err), w.Close())
	}
	return w, nil
}

// Inode identifies the file that is written to.
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

// Freeze stops all output until Thaw.
func (w *Writer) Freeze() { w.mu.Lock() }

// Thaw ends Freeze.
func (w *Writer) Thaw() { w.mu.Unlock() }

// Locked runs fn while no output moves.
func (w *Writer) Locked(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

// ErrUnfinished says that what is left in a FIFO is the beginning of a line.
var ErrUnfinished = errors.New("the line is not finished")

// Copy moves the whole lines that the FIFO fd, which is non-blocking, has ready,
// at most one batch. The beginning of a line stays in the FIFO, where nothing can
// happen to it. The error is ErrUnfinished when there is nothing else, EAGAIN when
// there is nothing at all, io.EOF when no writer is left either. A log that cannot
// be written to is no error: its output is dropped.
func (w *Writer) Copy(stream Stream, fd int) (int, error) {
	return w.copy(stream, fd, finished)
}

// CopyAll is Copy for what nobody finishes any more, or not soon.
func (w *Writer) CopyAll(stream Stream, fd int) (int, error) {
	return w.copy(stream, fd, func(data []byte) int { return len(data) })
}

func (w *Writer) copy(stream Stream, fd int, amount func(data []byte) int) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spool == nil {
		return 0, os.ErrClosed
	}
	in := inPool.Get().(*[]byte)
	defer inPool.Put(in)
	n, err := peek(fd, *in)
	if err != nil {
		return 0, err
	}
	if n = amount((*in)[:n]); n == 0 {
		return 0, ErrUnfinished
	}
	if n, err = w.fetch(stream, fd, (*in)[:n]); err != nil {
		return 0, err
	}
	w.emit(stream, (*in)[:n])
	if err := w.spool.Truncate(0); err != nil {
		return n, fmt.Errorf("empty spool: %w", err)
	}
	return n, nil
}

// fetch moves bytes from the FIFO through the spool into buf, which is as long
// as what is wanted. When the spool cannot take them (its filesystem is full)
// they are read directly.
func (w *Writer) fetch(stream Stream, fd int, buf []byte) (int, error) {
	if err := w.writeHeader(stream); err == nil {
		n, err := splice(fd, int(w.spool.Fd()), len(buf))
		switch {
		case err == nil && n == 0:
			return 0, io.EOF
		case err == nil:
			return n, readFull(w.spool, buf[:n])
		case errors.Is(err, unix.EAGAIN): // somebody else reads from the FIFO
			return 0, errors.Join(err, w.spool.Truncate(0))
		}
	}
	return read(fd, buf)
}

func splice(from, to, length int) (int, error) {
	for {
		offset := int64(spoolHeader)
		n, err := unix.Splice(from, nil, to, &offset, length, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if !errors.Is(err, unix.EINTR) {
			return int(n), err
		}
	}
}

func read(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0, errors.Is(err, unix.EIO): // EIO: the last user of a terminal is gone
			return 0, io.EOF
		default:
			return max(n, 0), err
		}
	}
}

func readFull(spool *os.File, buf []byte) error {
	if _, err := spool.ReadAt(buf, spoolHeader); err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	return nil
}

// CopyTerminal is Copy for the master side of a terminal.
func (w *Writer) CopyTerminal(fd int) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	in := inPool.Get().(*[]byte)
	defer inPool.Put(in)
	n, err := read(fd, *in)
	if err != nil {
		return 0, err
	}
	w.emit(Stdout, (*in)[:n])
	return n, nil
}

// emit hands data to the tap and appends its records to the log; what cannot be
// written is dropped as a whole and counted.
func (w *Writer) emit(stream Stream, data []byte) {
	if w.Tap != nil {
		w.Tap(stream, data)
	}
	if w.log == nil {
		if !w.at.none() {
			w.drop(data)
		}
		return
	}
	base, err := w.size()
	if err == nil {
		if err = w.append(stream, data, 0); err != nil {
			err = errors.Join(err, w.log.Truncate(base)) // no torn record stays
		}
	}
	if w.err = err; err != nil {
		w.drop(data)
	}
}

// drop counts output that cannot be logged for w.err.
func (w *Writer) drop(data []byte) {
	w.dropped += uint64(len(data))
	if now := time.Now(); w.Fault != nil && now.Sub(w.told) >= faultPause {
		w.told = now
		w.Fault(w.dropped, w.err)
	}
}

// append writes the records of data without their first skip bytes.
func (w *Writer) append(stream Stream, data []byte, skip int64) error {
	out := outPool.Get().(*[]byte)
	defer outPool.Put(out)
	p := newPrefixes(time.Now(), stream)
	buf := (*out)[:0]
	for len(data) > 0 {
		buf, data = p.appendRecord(buf, data)
		if len(buf) < flushAt && len(data) > 0 {
			continue
		}
		cut := min(skip, int64(len(buf)))
		skip -= cut
		if _, err := w.log.Write(buf[cut:]); err != nil {
			return err
		}
		buf = buf[:0]
	}
	return nil
}

func (w *Writer) size() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(w.log.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat log: %w", err)
	}
	return st.Size, nil
}

// Reopen makes a file at the log's path, if there is none, and writes there from
// now on. commit records the new inode. On an error the old file stays in use,
// and no new one exists.
func (w *Writer) Reopen(commit func(inode uint64) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.at.none() {
		return nil
	}
	file, err := w.at.make()
	made := err == nil
	if errors.Is(err, os.ErrExist) {
		file, err = w.at.open(false)
	}
	if err != nil {
		return fmt.Errorf("reopen log: %w", err)
	}
	inode, err := inodeOf(file)
	if err == nil {
		err = commit(inode)
	}
	if err != nil {
		if made {
			err = errors.Join(err, w.at.remove())
		}
		return errors.Join(fmt.Errorf("reopen log: %w", err), file.Close())
	}
	old := w.log
	w.log, w.inode = file, inode
	if old == nil {
		return nil
	}
	return old.Close()
}

// Close closes the files; the spool stays for a successor.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	if w.log != nil {
		errs = append(errs, w.log.Close())
	}
	if w.spool != nil {
		errs = append(errs, w.spool.Close())
	}
	w.log, w.spool = nil, nil
	return errors.Join(errs...)
}
