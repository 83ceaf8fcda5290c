// Package logfile reads the log files of containers in the format of the CRI:
// one line per line of output, with its time, its stream, and a tag that says
// whether the line goes on.
package logfile

import (
	"bytes"
	"time"
)

// Line is one record of a log file.
type Line struct {
	// Time is when it was written; zero for a record that is no CRI record.
	Time time.Time
	// Stderr says that it came from standard error.
	Stderr bool
	// Partial says that the line of output goes on in the next record of its stream.
	Partial bool
	// Text is the output without the end of line. It is valid until the next
	// record is read.
	Text []byte
}

var (
	streamOut  = []byte("stdout")
	streamErr  = []byte("stderr")
	tagPartial = []byte("P")
)

// ParseLine takes a record apart. What is no CRI record, such as the torn end
// of a file on a full disk, comes back as text alone: readers of a log want
// to see everything that is in it.
func ParseLine(record []byte) Line {
	stamp, rest, ok1 := bytes.Cut(record, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	tags, text, ok3 := bytes.Cut(rest, []byte{' '})
	if !ok3 {
		tags = rest // a record without text may end after its tag
	}
	if !ok1 || !ok2 || !bytes.Equal(stream, streamOut) && !bytes.Equal(stream, streamErr) {
		return Line{Text: record}
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return Line{Text: record}
	}
	first, _, _ := bytes.Cut(tags, []byte{':'})
	return Line{
		Time: at, Stderr: bytes.Equal(stream, streamErr),
		Partial: bytes.Equal(first, tagPartial), Text: text,
	}
}
