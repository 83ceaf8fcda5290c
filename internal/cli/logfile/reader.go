package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// maxRecord bounds what is held of a record; a longer one is passed on in
// pieces. Runtimes split at 16 KiB.
const maxRecord = 1 << 20

// Options say what to read.
type Options struct {
	// Tail is how many of the last lines of output to begin with; negative
	// means all.
	Tail int
	// Since leaves out what was written before it.
	Since time.Time
	// Ended, if set, makes Read follow the log until it is closed: what has
	// been written by then is still read. A nil channel reads to the present
	// end of the file.
	Ended <-chan struct{}
}

// Read passes the records of a log file to emit, in order. An error of emit
// ends it and is returned. While it follows, it goes over to the new file when
// the log is rotated, having read the old one to its end.
func Read(ctx context.Context, path string, o Options, emit func(Line) error) (err error) {
	r := &reader{path: path, since: o.Since, emit: emit}
	defer func() { err = errors.Join(err, r.close()) }()
	if o.Ended == nil {
		if err := r.open(o.Tail); err != nil {
			return err
		}
		return r.drain(true)
	}
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the log: %w", err)
	}
	defer func() { err = errors.Join(err, watch.Close()) }()
	// The directory, since a rotated log is a new file. Watched before the file
	// is opened, so that nothing falls in between.
	if err := watch.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("watch the directory of the log: %w", err)
	}
	if err := r.open(o.Tail); err != nil {
		return err
	}
	return r.follow(ctx, watch, o.Ended)
}

type reader struct {
	path  string
	since time.Time
	emit  func(Line) error

	file *os.File
	buf  []byte
	// pending is the beginning of a record whose end has not been written yet.
	pending []byte
}

func (r *reader) open(tail int) error {
	f, err := os.Open(r.path)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	r.file = f
	if r.buf == nil {
		r.buf = make([]byte, blockSize)
	}
	if tail < 0 {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	offset, err := tailOffset(f, info.Size(), tail)
	if err != nil {
		return err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return fmt.Errorf("seek to the end of the log: %w", err)
	}
	return nil
}

func (r *reader) close() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}

func (r *reader) follow(ctx context.Context, watch *fsnotify.Watcher, ended <-chan struct{}) error {
	for {
		if err := r.catchUp(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ended:
			if err := r.catchUp(); err != nil {
				return err
			}
			return r.drain(true)
		case _, ok := <-watch.Events:
			if !ok {
				return errors.New("log watch ended")
			}
		case err := <-watch.Errors:
			// Events were lost, so nothing is known but that something happened:
			// looking again is what an event leads to as well.
			if err != nil && !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch the log: %w", err)
			}
		}
	}
}

// catchUp reads what is there, in the next file too if the log was rotated.
func (r *reader) catchUp() error {
	if err := r.drain(false); err != nil {
		return err
	}
	next, err := os.Stat(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // renamed; its successor is not there yet
	}
	if err != nil {
		return fmt.Errorf("stat log: %w", err)
	}
	now, err := r.file.Stat()
	if err != nil {
		return fmt.Errorf("stat log: %w", err)
	}
	if os.SameFile(now, next) {
		return nil
	}
	// The writer has moved on, so the old file is complete now.
	if err := r.drain(true); err != nil {
		return err
	}
	if err := r.close(); err != nil {
		return fmt.Errorf("close the rotated log: %w", err)
	}
	if err := r.open(-1); err != nil {
		return err
	}
	return r.drain(false)
}

// drain reads to the end of the file. With last, an unfinished record at the
// end is passed on as it is.
func (r *reader) drain(last bool) error {
	for {
		n, err := r.file.Read(r.buf)
		if emitErr := r.records(r.buf[:n]); emitErr != nil {
			return emitErr
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
	}
	if !last || len(r.pending) == 0 {
		return nil
	}
	return r.flush()
}

// records passes on each whole record in data and keeps the rest.
func (r *reader) records(data []byte) error {
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			r.pending = append(r.pending, data...)
			if len(r.pending) > maxRecord {
				return r.flush()
			}
			return nil
		}
		record := data[:i]
		if len(r.pending) > 0 {
			r.pending = append(r.pending, record...)
			record = r.pending
		}
		if err := r.pass(record); err != nil {
			return err
		}
		r.pending = r.pending[:0]
		data = data[i+1:]
	}
	return nil
}

// flush passes on a record without its end.
func (r *reader) flush() error {
	line := ParseLine(r.pending)
	line.Partial = true
	r.pending = r.pending[:0]
	if line.Time.Before(r.since) && !line.Time.IsZero() {
		return nil
	}
	return r.emit(line)
}

func (r *reader) pass(record []byte) error {
	line := ParseLine(record)
	if line.Time.Before(r.since) && !line.Time.IsZero() {
		return nil
	}
	return r.emit(line)
}
