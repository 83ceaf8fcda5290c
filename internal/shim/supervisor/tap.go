package supervisor

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/shim/crilog"
	"github.com/berth-runtime/berth/internal/shim/wire"
)

// tapBuffer is how far the reader of an attachment may lag behind.
const tapBuffer = 1 << 20

// tap is one attachment: copies of the output go to pipes.
type tap struct {
	session        string
	stdin          bool
	stdout, stderr *os.File // write ends, non-blocking
}

func (t *tap) close() {
	for _, f := range []*os.File{t.stdout, t.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// copyToTaps copies output to those who are attached.
func (o *stdio) copyToTaps(stream crilog.Stream, data []byte) {
	o.tapsMu.Lock()
	defer o.tapsMu.Unlock()
	for id, t := range o.taps {
		to := t.stdout
		if stream == crilog.Stderr {
			to = t.stderr
		}
		if to == nil {
			continue
		}
		if err := writeAll(to, data); err != nil {
			// The reader is gone, or so slow that it would hold up the log.
			if !errors.Is(err, unix.EPIPE) {
				o.dropped.add(id, t.session)
			}
			delete(o.taps, id)
			t.close()
		}
	}
}

// writeAll writes without waiting.
func writeAll(to *os.File, data []byte) error {
	raw, err := to.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var writeErr error
	if err := raw.Control(func(fd uintptr) { n, writeErr = unix.Write(int(fd), data) }); err != nil {
		return err
	}
	if writeErr == nil && n < len(data) {
		return io.ErrShortWrite
	}
	return writeErr
}

// maxTaps bounds the attachments of one container.
const maxTaps = 256

// attach adds a tap and returns the reader's ends.
func (o *stdio) attach(id, session string, stdin, terminal bool) (wire.Files, error) {
	files := wire.Files{}
	t := &tap{session: session, stdin: stdin}
	err := o.openTap(t, files, terminal)
	if err == nil {
		o.lockTaps(func() {
			switch {
			case o.taps[id] != nil:
				err = fmt.Errorf("attachment %s: %w", id, errdefs.ErrAlreadyExists)
			case len(o.taps) >= maxTaps:
				err = fmt.Errorf("it has %d attachments: %w", len(o.taps), errdefs.ErrResourceExhausted)
			default:
				o.taps[id] = t
			}
		})
	}
	if err != nil {
		t.close()
		files.Close()
		return nil, err
	}
	return files, nil
}

// openTap opens both sides of a tap; after an error the caller closes them.
func (o *stdio) openTap(t *tap, files wire.Files, terminal bool) (err error) {
	if files[wire.Stdout], t.stdout, err = tapPipe(); err != nil {
		delete(files, wire.Stdout)
		return err
	}
	if !terminal {
		if files[wire.Stderr], t.stderr, err = tapPipe(); err != nil {
			delete(files, wire.Stderr)
			return err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	input := o.stdin
	if terminal {
		input = o.console
	}
	if !t.stdin || input == nil {
		return nil
	}
	dup, err := wire.Dup(input)
	if err == nil {
		files[wire.Stdin] = dup
	}
	return err
}

func tapPipe() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, fmt.Errorf("make attach pipe: %w", err)
	}
	// Refused only when the user is over the limit on pipe memory; then the default size must do.
	_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, tapBuffer)
	return os.NewFile(uintptr(p[0]), "attach"), os.NewFile(uintptr(p[1]), "attach"), nil
}

// detach removes the taps for which gone is true, and says whether one of them had stdin.
func (o *stdio) detach(gone func(id string, t *tap) bool) (hadStdin bool) {
	o.lockTaps(func() {
		for id, t := range o.taps {
			if gone(id, t) {
				hadStdin = hadStdin || t.stdin
				delete(o.taps, id)
				t.close()
			}
		}
	})
	return hadStdin
}

// droppedReaders are the attachments whose reader was so slow that it was dropped,
// until the client detaches. A container may be deleted before.
type droppedReaders struct {
	mu sync.Mutex
	// sessions are the clients' sessions by the attachments' IDs.
	sessions map[string]string
}

func (d *droppedReaders) add(id, session string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sessions == nil {
		d.sessions = map[string]string{}
	}
	d.sessions[id] = session
}

// list returns the sessions by the attachments' IDs.
func (d *droppedReaders) list() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.sessions)
}

// take removes an attachment. The error says that its reader was dropped.
func (d *droppedReaders) take(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, dropped := d.sessions[id]; !dropped {
		return nil
	}
	delete(d.sessions, id)
	return fmt.Errorf("output is incomplete: the client fell more than %d bytes behind: %w", tapBuffer, errdefs.ErrResourceExhausted)
}

// forget removes the attachments of all other sessions: their daemon is gone.
func (d *droppedReaders) forget(session string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.sessions, func(_, owner string) bool { return owner != session })
}

// lockTaps runs fn while no output passes to the taps.
func (o *stdio) lockTaps(fn func()) {
	o.tapsMu.Lock()
	defer o.tapsMu.Unlock()
	fn()
}

func (o *stdio) addTap(id string, t *tap) { o.lockTaps(func() { o.taps[id] = t }) }
