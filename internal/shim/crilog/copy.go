package crilog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// batch is how much output is moved at once: the capacity of a pipe.
	batch = 64 << 10
	// turnBytes is how many bytes of log are written at once.
	turnBytes = 128 << 10
)

var (
	inPool  = sync.Pool{New: func() any { b := make([]byte, batch); return &b }}
	outPool = sync.Pool{New: func() any { b := make([]byte, 0, turnBytes+MaxLine+2*recordHead); return &b }}
)

// ErrUnfinished says that what is left in a FIFO is the beginning of a line.
var ErrUnfinished = errors.New("the line is not finished")

// Copy moves the whole lines that the FIFO fd, which is non-blocking, has ready,
// at most one batch. The beginning of a line stays in the FIFO, where nothing can
// happen to it. The error is ErrUnfinished when there is nothing else, EAGAIN when
// there is nothing at all, io.EOF when no writer is left either. A log that cannot
// be written to is no error: its output is dropped.
func (w *Writer) Copy(stream Stream, fd int) (int, error) {
	return w.limited(func() (int, error) { return w.copy(stream, fd, stream.finished) })
}

// CopyAll is Copy for a line whose end will not come, or not soon. It ignores the limit.
func (w *Writer) CopyAll(stream Stream, fd int) (int, error) {
	return w.turn(func() (int, error) { return w.copy(stream, fd, stream.all) })
}

// limited is turn for a container that may write no more than Limit bytes per second:
// afterwards it waits until they are paid for.
func (w *Writer) limited(move func() (int, error)) (int, error) {
	n, err := w.turn(move)
	w.pay()
	return n, err
}

// turn calls move with the token, when it is this container's turn.
func (w *Writer) turn(move func() (int, error)) (int, error) {
	if err := w.acquire(context.Background()); err != nil {
		return 0, err
	}
	defer w.release()
	end, err := w.Turns.begin(w.closing)
	if err != nil {
		return 0, err
	}
	defer end()
	if w.spool == nil {
		return 0, os.ErrClosed
	}
	return move()
}

func (w *Writer) copy(stream Stream, fd int, amount func(data []byte) int) (int, error) {
	in := inPool.Get().(*[]byte)
	defer inPool.Put(in)
	n, err := peek(fd, *in)
	if err != nil {
		return 0, err
	}
	if n = amount((*in)[:n]); n == 0 {
		return 0, ErrUnfinished
	}
	n = affordable((*in)[:n], w.budget())
	if n, err = w.fetch(stream, fd, (*in)[:n]); err != nil {
		return 0, err
	}
	data := (*in)[:n]
	if w.Tap != nil && stream != Terminal {
		w.Tap(stream, data)
	}
	w.emit(stream, stream.content(data))
	return n, w.emptySpool()
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
		case errors.Is(err, unix.EAGAIN): // another reader empties the FIFO
			return 0, errors.Join(err, w.emptySpool())
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
		if !errors.Is(err, unix.EINTR) {
			return ended(n, err)
		}
	}
}

// ended makes io.EOF of the outcomes of a read that say it. EIO says it of a terminal.
func ended(n int, err error) (int, error) {
	if err == nil && n == 0 || errors.Is(err, unix.EIO) {
		return 0, io.EOF
	}
	return max(n, 0), err
}

func readFull(spool *os.File, buf []byte) error {
	if _, err := spool.ReadAt(buf, spoolHeader); err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	return nil
}

// EndStreams completes the last record of each stream when that is a piece of a line. It is
// called when the container has ended.
func (w *Writer) EndStreams() error {
	_, err := w.turn(func() (int, error) {
		for _, stream := range []Stream{Stdout, Stderr} {
			if w.partial.has(stream) && w.log != nil {
				w.emit(stream, nil)
			}
		}
		return 0, w.emptySpool()
	})
	return err
}

// emit appends the records of data to the log; what cannot be written is dropped as a
// whole and counted. Without data the last record of the stream is completed.
func (w *Writer) emit(stream Stream, data []byte) {
	if w.log == nil {
		if !w.at.none() {
			w.drop(stream, data)
		}
		return
	}
	partial := w.partial
	base, err := w.size()
	if err == nil {
		if err = w.append(stream, data, 0); err != nil {
			err = errors.Join(err, w.log.Truncate(base)) // no torn record stays
		}
	}
	w.setFault(err)
	if err != nil {
		w.partial = partial
		w.drop(stream, data)
	}
}

// drop counts output that cannot be logged.
func (w *Writer) drop(stream Stream, data []byte) {
	w.broken.set(stream, w.partial.has(stream))
	w.Turns.count(0, len(data))
	w.mu.Lock()
	w.dropped += uint64(len(data))
	dropped, why := w.dropped, w.err
	now := time.Now()
	due := now.Sub(w.reported) >= faultPause
	if due {
		w.reported = now
	}
	w.mu.Unlock()
	if due && w.Fault != nil {
		w.Fault(dropped, why)
	}
}

// append writes the records of data without their first skip bytes.
func (w *Writer) append(stream Stream, data []byte, skip int64) error {
	out := outPool.Get().(*[]byte)
	defer outPool.Put(out)
	p := newPrefixes(time.Now(), stream)
	buf := (*out)[:0]
	if w.broken.has(stream) || len(data) == 0 {
		buf = append(append(buf, p.full...), '\n')
	}
	partial := w.partial.has(stream) && len(buf) == 0
	for {
		if len(data) > 0 {
			partial = bytes.IndexByte(data[:min(len(data), MaxLine+1)], '\n') < 0
			buf, data = p.appendRecord(buf, data)
		}
		if len(buf) < turnBytes && len(data) > 0 {
			continue
		}
		cut := min(skip, int64(len(buf)))
		skip -= cut
		if _, err := w.log.Write(buf[cut:]); err != nil {
			return err
		}
		w.bucket.take(len(buf))
		w.Turns.count(len(buf), 0)
		if buf = buf[:0]; len(data) == 0 {
			break
		}
	}
	w.broken.set(stream, false)
	w.partial.set(stream, partial)
	return nil
}

func (w *Writer) size() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(w.log.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat log: %w", err)
	}
	return st.Size, nil
}
