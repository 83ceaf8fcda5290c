package pod

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/shim"
)

const (
	// answerQuiet is how long a container writes nothing before its answer to the
	// client's input is taken as complete. It is longer than the supervisor holds
	// back the beginning of a line.
	answerQuiet = 400 * time.Millisecond
	// answerLimit bounds the wait for that. Containers may write for ever.
	answerLimit = 3 * time.Second
	// answerLook is how often the wait looks at the container's input and output.
	answerLook = 20 * time.Millisecond
)

// attachOutput is one output of an attach session.
type attachOutput struct {
	to   io.Writer
	from *os.File
	// read is how many bytes were read from the container.
	read atomic.Int64
}

type attachOutputs struct {
	list []*attachOutput
	// ended says that the end of the input has ended the outputs.
	ended atomic.Bool
}

// newAttachOutputs returns the outputs that the client asked for and the container has.
func newAttachOutputs(a *shim.Attachment, s Streams) *attachOutputs {
	outputs := &attachOutputs{}
	for _, o := range []*attachOutput{{to: s.Stdout, from: a.Stdout}, {to: s.Stderr, from: a.Stderr}} {
		if o.to != nil && o.from != nil {
			outputs.list = append(outputs.list, o)
		}
	}
	return outputs
}

// copy delivers output until there is no more. After endAfter that is what was
// written by then, however slowly the client takes it.
func (o *attachOutput) copy() error {
	_, err := io.Copy(o.to, readCounter{o})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = copyRest(o.to, o.from)
	}
	return err
}

// readCounter reads from an output and counts.
type readCounter struct{ o *attachOutput }

// Read implements [io.Reader].
func (r readCounter) Read(p []byte) (int, error) {
	n, err := r.o.from.Read(p)
	r.o.read.Add(int64(n))
	return n, err
}

// endAfter ends the outputs of a session whose input has ended once the container
// has read the input and its answer is complete, or after answerLimit.
func (outputs *attachOutputs) endAfter(ctx context.Context, stdin *os.File) {
	limit := time.NewTimer(answerLimit)
	defer limit.Stop()
	look := time.NewTicker(answerLook)
	defer look.Stop()
	seen, since := outputs.progress(), time.Now()
	for waiting := true; waiting; {
		select {
		case <-ctx.Done():
			waiting = false
		case <-limit.C:
			waiting = false
		case <-look.C:
			if now := outputs.progress(); now != seen || queued(stdin) > 0 {
				seen, since = now, time.Now()
			}
			waiting = time.Since(since) < answerQuiet
		}
	}
	outputs.ended.Store(true)
	for _, o := range outputs.list {
		// It fails only for a file that is closed: the session has ended.
		_ = o.from.SetReadDeadline(time.Now())
	}
}

// progress is how many bytes of output the session has had.
func (outputs *attachOutputs) progress() int64 {
	var sum int64
	for _, o := range outputs.list {
		sum += o.read.Load() + int64(queued(o.from))
	}
	return sum
}

// queued is how many bytes are in a pipe; a pipe that is closed has none.
func queued(f *os.File) int {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		return 0
	}
	return n
}
