package crilog

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

func inodeOf(file *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat log: %w", err)
	}
	return st.Ino, nil
}

// The header of the spool: magic, length and inode of the log, stream, and the streams that
// are partial and broken. Data is behind it.
const (
	spoolHeader = 32
	spoolMagic  = 0x314c4f4f50534252 // "RBSPOOL1"
	streamAt    = 24
	partialAt   = 25
	brokenAt    = 26
)

// writeHeader makes the spool say where its data will go.
func (w *Writer) writeHeader(stream Stream) error {
	var base int64
	if w.log != nil {
		var err error
		if base, err = w.size(); err != nil {
			return err
		}
	}
	var header [spoolHeader]byte
	binary.LittleEndian.PutUint64(header[0:], spoolMagic)
	binary.LittleEndian.PutUint64(header[8:], uint64(base))
	binary.LittleEndian.PutUint64(header[16:], w.Inode())
	header[streamAt] = byte(stream)
	header[partialAt], header[brokenAt] = byte(w.partial), byte(w.broken)
	_, err := w.spool.WriteAt(header[:], 0)
	w.noted = [2]streams{w.partial, w.broken}
	return err
}

// emptySpool is called once the data of the spool has been logged or dropped.
func (w *Writer) emptySpool() error {
	now := [2]streams{w.partial, w.broken}
	if now != w.noted {
		w.noted = now
		if _, err := w.spool.WriteAt([]byte{byte(w.partial), byte(w.broken)}, partialAt); err != nil {
			return fmt.Errorf("empty spool: %w", err)
		}
	}
	if err := w.spool.Truncate(spoolHeader); err != nil {
		return fmt.Errorf("empty spool: %w", err)
	}
	return nil
}

// recover logs what a predecessor moved to the spool and did not finish.
func (w *Writer) recover() error {
	text, err := io.ReadAll(io.LimitReader(w.spool, spoolHeader+batch))
	if err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	found := parseSpool(text)
	w.partial, w.broken = found.partial, found.broken
	if len(found.data) > 0 && w.log != nil {
		var written int64
		if found.inode == w.Inode() {
			size, err := w.size()
			if err != nil {
				return err
			}
			written = max(0, size-found.base)
		}
		if err := w.append(found.stream, found.data, written); err != nil {
			w.setFault(err)
			w.drop(found.stream, found.data)
		}
	}
	if len(text) == 0 {
		return w.writeHeader(Stdout)
	}
	return w.emptySpool()
}

// spooled is what a predecessor left in the spool.
type spooled struct {
	stream          Stream
	base            int64
	inode           uint64
	partial, broken streams
	data            []byte
}

// parseSpool takes a spool apart. Data is empty when there is nothing to finish.
func parseSpool(text []byte) spooled {
	if len(text) < spoolHeader || binary.LittleEndian.Uint64(text) != spoolMagic {
		return spooled{stream: Stdout}
	}
	return spooled{
		stream: Stream(text[streamAt]), base: max(0, int64(binary.LittleEndian.Uint64(text[8:]))),
		inode: binary.LittleEndian.Uint64(text[16:]), partial: streams(text[partialAt]), broken: streams(text[brokenAt]),
		data: Stream(text[streamAt]).content(text[spoolHeader:]),
	}
}
