package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/berth-runtime/berth/internal/cli/session"
)

// The keys that leave a terminal session without ending it: Ctrl-P, Ctrl-Q.
const (
	detachFirst  = 0x10
	detachSecond = 0x11
)

// rawTerminal passes every key of our terminal on as it is pressed, and tells
// its size whenever that changes.
type rawTerminal struct {
	fd    int
	state *term.State
	sizes chan session.Size
	winch chan os.Signal
	done  chan struct{}
	group sync.WaitGroup
}

// openTerminal puts our terminal into raw mode until close.
func openTerminal(fd int) (*rawTerminal, error) {
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("set terminal to raw mode: %w", err)
	}
	t := &rawTerminal{
		fd: fd, state: state, sizes: make(chan session.Size, 1),
		winch: make(chan os.Signal, 1), done: make(chan struct{}),
	}
	t.winch <- syscall.SIGWINCH // the size at the beginning is news as well
	signal.Notify(t.winch, syscall.SIGWINCH)
	t.group.Go(t.watchSize)
	return t, nil
}

func (t *rawTerminal) watchSize() {
	for {
		select {
		case <-t.done:
			return
		case <-t.winch:
		}
		width, height, err := term.GetSize(t.fd)
		if err != nil || width <= 0 || height <= 0 {
			continue // a terminal without a size has nothing to tell
		}
		select {
		case <-t.done:
			return
		case t.sizes <- session.Size{Width: uint16(width), Height: uint16(height)}:
		}
	}
}

// close gives the terminal back as it was.
func (t *rawTerminal) close() error {
	signal.Stop(t.winch)
	close(t.done)
	t.group.Wait()
	if err := term.Restore(t.fd, t.state); err != nil {
		return fmt.Errorf("restore the terminal: %w", err)
	}
	return nil
}

// stdin is our standard input for the time of one session. Closing it makes a
// Read in flight return and takes no byte that was not read yet, so that what
// is typed after the session is still there for the shell.
type stdin struct {
	file *os.File
	wake *os.File // its other end is closed to end a Read
	stop *os.File
}

func openStdin(file *os.File) (*stdin, error) {
	wake, stop, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("prepare stdin: %w", err)
	}
	return &stdin{file: file, wake: wake, stop: stop}, nil
}

// Read waits for input or for Close.
func (s *stdin) Read(p []byte) (int, error) {
	fds := []unix.PollFd{
		{Fd: int32(s.file.Fd()), Events: unix.POLLIN}, //nolint:gosec // descriptors are small
		{Fd: int32(s.wake.Fd()), Events: unix.POLLIN}, //nolint:gosec // descriptors are small
	}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for input: %w", err)
		}
		if fds[1].Revents != 0 {
			return 0, io.EOF
		}
		return s.file.Read(p)
	}
}

// Close ends a Read in flight.
func (s *stdin) Close() error { return s.stop.Close() }

// release gives back what openStdin took, once nothing reads any more.
func (s *stdin) release() error { return s.wake.Close() }

// detachable is an input in which two keys leave the session.
type detachable struct {
	io.ReadCloser

	first bool // the first of the two was the last key read
}

// Read holds the first key back until it is known what follows.
func (d *detachable) Read(p []byte) (int, error) {
	if len(p) < 2 {
		return 0, io.ErrShortBuffer
	}
	// One byte of room for the key that was held back.
	n, err := d.ReadCloser.Read(p[1:])
	in := p[1 : 1+n]
	out := p[:0]
	for _, key := range in {
		if d.first {
			d.first = false
			if key == detachSecond {
				return len(out), session.ErrDetached
			}
			out = append(out, detachFirst)
		}
		if key == detachFirst {
			d.first = true
			continue
		}
		out = append(out, key)
	}
	if err != nil && d.first && len(out) < len(p) {
		d.first = false
		out = append(out, detachFirst)
	}
	return len(out), err
}
