package pod

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/shim"
)

const (
	// maxRest bounds what is read after the deadline of an output has passed: a
	// pipe holds 64 KiB, and a process that goes on writing does not keep the
	// session.
	maxRest = 1 << 20
	// restChunk is read at once.
	restChunk = 32 << 10
)

// execPipes are our ends of the streams of a command.
type execPipes struct {
	stdin, stdout, stderr *os.File
	console               *os.File
}

// openPipes makes the pipes that a command is connected to and puts the
// command's ends into the request.
func openPipes(req *shim.ExecRequest, s Streams) (*execPipes, error) {
	p := &execPipes{}
	if s.Terminal {
		return p, nil
	}
	var err error
	if s.Stdin != nil {
		req.Stdin, p.stdin, err = os.Pipe()
	}
	if err == nil && s.Stdout != nil {
		p.stdout, req.Stdout, err = os.Pipe()
	}
	if err == nil && s.Stderr != nil {
		p.stderr, req.Stderr, err = os.Pipe()
	}
	if err != nil {
		p.close()
		closeFiles(req.Stdin, req.Stdout, req.Stderr)
		return nil, err
	}
	return p, nil
}

// copyIn carries the client's input. It ends with the pipe: p.close ends a
// write, and a read of the client's stream ends with the session.
func (p *execPipes) copyIn(group *errgroup.Group, s Streams) {
	target := p.stdin
	if s.Terminal {
		target = p.console
	}
	if s.Stdin == nil || target == nil {
		return
	}
	group.Go(func() error {
		_, err := io.Copy(target, s.Stdin)
		if s.Terminal {
			return err // a terminal has no half-close
		}
		return errors.Join(err, target.Close())
	})
}

// copyOut carries the command's output. The group's error says that a client did
// not get all of it.
func (p *execPipes) copyOut(group *errgroup.Group, s Streams) {
	copyFile := func(w io.Writer, f *os.File) {
		if w != nil && f != nil {
			group.Go(func() error { return copyOutput(w, f) })
		}
	}
	if s.Terminal {
		copyFile(s.Stdout, p.console)
		return
	}
	copyFile(s.Stdout, p.stdout)
	copyFile(s.Stderr, p.stderr)
}

// copyOutput copies until the output ends or its read deadline has passed, and
// then what was written by that time: the deadline bounds the wait for output, not
// the time that a slow client takes.
func copyOutput(w io.Writer, f *os.File) error {
	_, err := io.Copy(w, f)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = copyRest(w, f)
	}
	// EIO: the other side of a terminal closed. ErrClosed: endOutput has ended the read.
	if err == nil || errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	_, _ = io.Copy(io.Discard, f) // the command must not block on a client that is gone
	return fmt.Errorf("deliver output: %w", err)
}

// copyRest copies what is in a pipe or terminal, up to a bound, without waiting
// for more.
func copyRest(w io.Writer, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, restChunk)
	for left := maxRest; left > 0; {
		var n int
		var failed error
		if err := raw.Control(func(fd uintptr) { n, failed = unix.Read(int(fd), buf) }); err != nil {
			return err
		}
		switch {
		case errors.Is(failed, unix.EINTR):
			continue
		case errors.Is(failed, unix.EAGAIN), failed == nil && n <= 0:
			return nil
		case failed != nil:
			return failed
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// endOutput waits until the output is drained, with a bound: another process that
// holds the stream does not keep the session.
func (p *execPipes) endOutput(group *errgroup.Group) error {
	limit := time.Now().Add(drainGrace)
	for _, f := range []*os.File{p.stdout, p.stderr, p.console} {
		if f != nil && f.SetReadDeadline(limit) != nil {
			closeFiles(f) // without deadlines, closing is what ends a read
		}
	}
	return group.Wait()
}

func (p *execPipes) close() { closeFiles(p.stdin, p.stdout, p.stderr, p.console) }

// closeFiles closes files that may be nil or closed already.
func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close() //nolint:errcheck // of a pipe, it fails only if it was closed before
		}
	}
}
