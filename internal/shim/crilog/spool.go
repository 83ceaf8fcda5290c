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
	binary.LittleEndian.PutUint64(header[16:], w.inode)
	header[24] = byte(stream)
	_, err := w.spool.WriteAt(header[:], 0)
	return err
}

// recover logs what a predecessor moved to the spool and did not finish.
func (w *Writer) recover() error {
	text, err := io.ReadAll(io.LimitReader(w.spool, spoolHeader+batch))
	if err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	stream, base, inode, data := parseSpool(text)
	if len(data) > 0 && w.log != nil {
		var written int64
		if inode == w.inode {
			size, err := w.size()
			if err != nil {
				return err
			}
			written = max(0, size-base)
		}
		if err := w.append(stream, data, written); err != nil {
			w.dropped, w.err = uint64(len(data)), err
		}
	}
	return w.spool.Truncate(0)
}

// parseSpool takes a spool apart. Data is empty when there is nothing to finish.
func parseSpool(text []byte) (stream Stream, base int64, inode uint64, data []byte) {
	if len(text) <= spoolHeader || binary.LittleEndian.Uint64(text) != spoolMagic {
		return Stdout, 0, 0, nil
	}
	base = max(0, int64(binary.LittleEndian.Uint64(text[8:])))
	stream = Stream(text[24])
	return stream, base, binary.LittleEndian.Uint64(text[16:]), text[spoolHeader:]
}
