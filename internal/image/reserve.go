package image

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// reserveSize is enough for the database pages that cleaning up after a pull
// writes.
const reserveSize = 2 << 20

// reserve keeps some blocks of the disk allocated. When the disk is full the
// databases could not even record that something was removed; giving the
// reserve back makes that possible.
type reserve struct {
	mu   sync.Mutex
	path string
	log  *slog.Logger
}

func newReserve(path string, log *slog.Logger) *reserve {
	r := &reserve{path: path, log: log}
	r.restore()
	return r
}

// release frees the blocks.
func (r *reserve) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Error("cannot free the image store's reserve", "error", err)
	}
}

// room does something that writes little. If the disk is full it is done again
// with the reserve given back.
func (r *reserve) room(do func() error) error {
	err := do()
	if isFull(err) {
		r.release()
		err = do()
	}
	return err
}

// restore allocates them again, if there is room.
func (r *reserve) restore() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := os.Stat(r.path); err == nil {
		return
	}
	if err := r.allocate(); err != nil {
		r.log.Warn("cannot set aside the image store's reserve", "size", reserveSize, "error", err)
		if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.log.Error("cannot free the image store's reserve", "error", err)
		}
	}
}

func (r *reserve) allocate() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY, fileMode)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, reserveSize)
	if errors.Is(err, unix.ENOTSUP) {
		_, err = f.Write(make([]byte, reserveSize))
	}
	return errors.Join(err, f.Close())
}
