package pod

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/shim"
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

func (p *execPipes) copyOut(group *errgroup.Group, s Streams) {
	copyFile := func(w io.Writer, f *os.File) {
		if w == nil || f == nil {
			return
		}
		group.Go(func() error {
			_, err := io.Copy(w, f)
			if err != nil && !errors.Is(err, unix.EIO) { // EIO: the other side of a terminal closed
				_, _ = io.Copy(io.Discard, f) // the command shall not block on a client that left
			}
			return nil
		})
	}
	if s.Terminal {
		copyFile(s.Stdout, p.console)
		return
	}
	copyFile(s.Stdout, p.stdout)
	copyFile(s.Stderr, p.stderr)
}

// endOutput waits until the output is drained, with a bound: whoever else
// holds the stream does not keep the session.
func (p *execPipes) endOutput(group *errgroup.Group) {
	limit := time.Now().Add(drainGrace)
	for _, f := range []*os.File{p.stdout, p.stderr, p.console} {
		if f != nil && f.SetReadDeadline(limit) != nil {
			closeFiles(f) // without deadlines, closing is what ends a read
		}
	}
	_ = group.Wait() // copyOut reports no errors
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
