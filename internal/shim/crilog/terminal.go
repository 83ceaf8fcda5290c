package crilog

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// terminalRead is how much is read from a terminal at once: a page, which always fits into a
	// FIFO that poll reports as writable.
	terminalRead = 4 << 10
	// fifoCapacity is the capacity of a terminal's FIFO: 256 pages, of which each read from the
	// terminal takes one.
	fifoCapacity = 1 << 20
)

// SizeFIFO gives a FIFO for CopyTerminal its capacity. That is refused only for lack of memory:
// then fewer pieces of a line are joined.
func SizeFIFO(fd int) { _, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, fifoCapacity) }

// CopyTerminal is Copy for the near side of a terminal. What it shows is first moved to fifo by
// splice(2), one system call; from there on it is copied like other output. A process that is
// killed leaves it in the terminal or in fifo, which lives as long as any process has it open.
// Linux 5.10 cannot splice terminals: there a SIGKILL between read and write loses a page.
func (w *Writer) CopyTerminal(fd, fifo int) (int, error) {
	return w.limited(func() (int, error) { return w.copyTerminal(fd, fifo) })
}

// DrainTerminal is CopyTerminal without the limit.
func (w *Writer) DrainTerminal(fd, fifo int) (int, error) {
	return w.turn(func() (int, error) { return w.copyTerminal(fd, fifo) })
}

func (w *Writer) copyTerminal(fd, fifo int) (int, error) {
	n, held := w.copy(Terminal, fifo, Terminal.finished)
	if !errors.Is(held, ErrUnfinished) && !errors.Is(held, unix.EAGAIN) {
		return n, held
	}
	if full, err := isFull(fifo); err != nil {
		return 0, err
	} else if full { // of the pieces of one line
		return w.copy(Terminal, fifo, Terminal.all)
	}
	moved, err := moveTerminal(fd, fifo)
	if errors.Is(err, unix.EAGAIN) {
		return 0, held
	}
	if err != nil {
		return 0, err
	}
	if err := w.tapTerminal(fifo, moved); err != nil {
		return 0, err
	}
	n, err = w.copy(Terminal, fifo, Terminal.finished)
	if errors.Is(err, ErrUnfinished) { // there may be more in the terminal
		err = nil
	}
	return n, err
}

// isFull reports whether a FIFO has no room for a page.
func isFull(fifo int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fifo), Events: unix.POLLOUT}}
	for {
		_, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("poll FIFO of terminal: %w", err)
		}
		return fds[0].Revents&unix.POLLOUT == 0, nil
	}
}

// moveTerminal moves output of the terminal to fifo, which has room for a page. The error is
// io.EOF when every far side of the terminal is closed.
func moveTerminal(fd, fifo int) (int, error) {
	for {
		n, err := unix.Splice(fd, nil, fifo, nil, terminalRead, unix.SPLICE_F_NONBLOCK)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EINVAL):
			return moveByCopy(fd, fifo)
		default:
			return ended(int(n), err)
		}
	}
}

// moveByCopy is moveTerminal for Linux 5.10.
func moveByCopy(fd, fifo int) (int, error) {
	var page [terminalRead]byte
	n, err := read(fd, page[:])
	if err != nil {
		return 0, err
	}
	if _, err := unix.Write(fifo, page[:n]); err != nil {
		return 0, fmt.Errorf("write FIFO of terminal: %w", err)
	}
	return n, nil
}

// tapTerminal gives the last bytes in fifo to Tap: attached clients do not wait for whole lines.
func (w *Writer) tapTerminal(fifo, last int) error {
	if w.Tap == nil {
		return nil
	}
	in := inPool.Get().(*[]byte)
	defer inPool.Put(in)
	n, err := peek(fifo, *in)
	if err != nil {
		return err
	}
	w.Tap(Stdout, (*in)[max(0, n-last):n])
	return nil
}

// finished is how much of data can be logged so that no line is torn: all whole
// lines, and of an unfinished one what is over the longest record.
func (s Stream) finished(data []byte) int {
	if s == Terminal { // a carriage return at the end may belong to the line feed behind it
		data = bytes.TrimSuffix(data, []byte{'\r'})
	}
	lines := bytes.LastIndexByte(data, '\n') + 1
	if tail := len(data) - lines; tail > MaxLine {
		lines += (tail - 1) / MaxLine * MaxLine
	}
	return lines
}

// all is how much of data can be logged when its last line will not be finished soon: what is in
// front of a carriage return at the end of a terminal's output, and that if it is alone.
func (s Stream) all(data []byte) int {
	if s == Terminal && len(data) > 1 {
		data = bytes.TrimSuffix(data, []byte{'\r'})
	}
	return len(data)
}

// content is what of data is logged. It changes data.
func (s Stream) content(data []byte) []byte {
	if s != Terminal {
		return data
	}
	return withoutReturns(data)
}

// withoutReturns removes, in place, the carriage return in front of each line feed.
func withoutReturns(data []byte) []byte {
	at := bytes.Index(data, []byte("\r\n"))
	if at < 0 {
		return data
	}
	kept := data[:at]
	for rest := data[at+1:]; ; {
		next := bytes.Index(rest, []byte("\r\n"))
		if next < 0 {
			return append(kept, rest...)
		}
		kept = append(kept, rest[:next]...)
		rest = rest[next+1:]
	}
}
