// Package journal is the supervisor's exit journal: an append-only file of
// CRC-framed entries, written before an exit is published.
//
// A frame is the length of the body (4 bytes, little endian), the CRC-32C of the
// body (4 bytes) and the body, JSON. A process killed while it appends leaves a
// torn frame at the end; Open cuts it off. A later entry for an ID replaces an
// earlier one. There is no fsync: after a power loss no container is left whose
// exit could matter.
package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
	"syscall"
)

const (
	headerSize = 8
	// MaxBody bounds the body of a frame; a longer length in a file is damage.
	MaxBody = 16 << 10
	// compactAt is the size from which on the file is rewritten when it is mostly history.
	compactAt = 256 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Entry is one exit.
type Entry struct {
	// ID is the container's.
	ID string `json:"id"`
	// Status is the wait status as the kernel gave it; it means something if Known.
	Status uint32 `json:"status"`
	Known  bool   `json:"known"`
	// Reason says why the status is not known.
	Reason string `json:"reason,omitempty"`
	// AtNano is when the exit was seen, in Unix nanoseconds.
	AtNano int64 `json:"at"`
	// Final is set by the second entry of an exit, when OOM has been looked up and
	// the output has been drained.
	Final bool `json:"final,omitempty"`
	OOM   bool `json:"oom,omitempty"`
	// Gone says that the ID was forgotten, so that it may be used again.
	Gone bool `json:"gone,omitempty"`
}

// Journal is an open exit journal. Its methods may be called by many goroutines.
type Journal struct {
	path string

	mu   sync.Mutex // guards what follows
	file *os.File
	size int64
	last map[string]Entry
}

// Open reads the journal at path, or makes one, and cuts off what is damaged.
func Open(path string) (*Journal, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open exit journal: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read exit journal: %w", err), file.Close())
	}
	entries, good := Parse(text)
	if good < len(text) {
		if err := file.Truncate(int64(good)); err != nil {
			return nil, errors.Join(fmt.Errorf("cut torn end of exit journal: %w", err), file.Close())
		}
	}
	j := &Journal{path: path, file: file, size: int64(good), last: map[string]Entry{}}
	for _, e := range entries {
		if j.last[e.ID] = e; e.Gone {
			delete(j.last, e.ID)
		}
	}
	return j, nil
}

// Parse returns the entries at the beginning of text and how many bytes they take.
func Parse(text []byte) (entries []Entry, good int) {
	for {
		rest := text[good:]
		if len(rest) < headerSize {
			return entries, good
		}
		length := binary.LittleEndian.Uint32(rest)
		if length > MaxBody || int(length) > len(rest)-headerSize {
			return entries, good
		}
		body := rest[headerSize : headerSize+int(length)]
		var e Entry
		if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(rest[4:]) || json.Unmarshal(body, &e) != nil || e.ID == "" {
			return entries, good
		}
		entries = append(entries, e)
		good += headerSize + int(length)
	}
}

// frame returns the bytes of one entry.
func frame(e Entry) ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode exit of %s: %w", e.ID, err)
	}
	if len(body) > MaxBody {
		return nil, fmt.Errorf("encode exit of %s: %d bytes are more than %d", e.ID, len(body), MaxBody)
	}
	b := make([]byte, headerSize, headerSize+len(body))
	binary.LittleEndian.PutUint32(b, uint32(len(body)))
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(body, castagnoli))
	return append(b, body...), nil
}

// Append records an exit. Nil means that a process which opens the journal later
// finds it. After an error (a full disk) the entry is remembered in memory only,
// and the file is as it was.
func (j *Journal) Append(e Entry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last[e.ID] = e
	return j.writeLocked(e)
}

func (j *Journal) writeLocked(e Entry) error {
	b, err := frame(e)
	if err != nil {
		return err
	}
	if n, err := j.file.Write(b); err != nil {
		err = fmt.Errorf("append to exit journal: %w", err)
		if n > 0 {
			err = errors.Join(err, j.file.Truncate(j.size))
		}
		return err
	}
	j.size += int64(len(b))
	return nil
}

// Last returns the newest entry of an ID.
func (j *Journal) Last(id string) (Entry, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.last[id]
	return e, ok
}

// Forget drops an ID, which may be used again after a nil error; the file is rewritten when it has become long.
func (j *Journal) Forget(id string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, known := j.last[id]; !known {
		return nil
	}
	delete(j.last, id)
	if j.size < compactAt {
		return j.writeLocked(Entry{ID: id, Gone: true})
	}
	return j.compactLocked()
}

// Keep drops every ID for which keep is false and rewrites the file.
func (j *Journal) Keep(keep func(id string) bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for id := range j.last {
		if !keep(id) {
			delete(j.last, id)
		}
	}
	return j.compactLocked()
}

// compactLocked replaces the file by one that holds the newest entries only.
func (j *Journal) compactLocked() error {
	var content []byte
	for _, e := range j.last {
		b, err := frame(e)
		if err != nil {
			return err
		}
		content = append(content, b...)
	}
	fresh := j.path + ".new"
	if err := os.WriteFile(fresh, content, 0o600); err != nil {
		return errors.Join(fmt.Errorf("rewrite exit journal: %w", err), os.Remove(fresh))
	}
	file, err := os.OpenFile(fresh, os.O_RDWR|os.O_APPEND|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("rewrite exit journal: %w", err)
	}
	if err := os.Rename(fresh, j.path); err != nil {
		return errors.Join(fmt.Errorf("rewrite exit journal: %w", err), file.Close())
	}
	old := j.file
	j.file, j.size = file, int64(len(content))
	return old.Close()
}

// Close closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.file.Close()
}
