// Package crilog writes container log files in the format of the Container
// Runtime Interface, one record per line:
//
//	2026-01-02T15:04:05.123456789Z stdout F a whole line
//	2026-01-02T15:04:05.123456789Z stderr P a piece of a line, more follows
//
// A line longer than MaxLine is split into pieces. What has no line feed yet is
// a piece too, if the container ends or pauses before it is finished.
package crilog

import (
	"bytes"
	"time"
)

// MaxLine is the longest content of one record.
const MaxLine = 16 << 10

// stampLayout has a fixed width, so that the length of a record follows from its
// content alone; recovery depends on that.
const stampLayout = "2006-01-02T15:04:05.000000000Z"

// Stream is one of a container's two output streams.
type Stream byte

// The streams.
const (
	Stdout Stream = 'o'
	Stderr Stream = 'e'
)

// String returns the name of the stream in the log.
func (s Stream) String() string {
	if s == Stderr {
		return "stderr"
	}
	return "stdout"
}

// prefixes of full and partial records made at one instant on one stream.
type prefixes struct{ full, partial []byte }

func newPrefixes(at time.Time, stream Stream) prefixes {
	head := at.UTC().Format(stampLayout) + " " + stream.String()
	return prefixes{full: []byte(head + " F "), partial: []byte(head + " P ")}
}

// appendRecord appends the record at the beginning of data, which is not empty,
// and returns the data behind it.
func (p *prefixes) appendRecord(dst, data []byte) (out, rest []byte) {
	end := bytes.IndexByte(data[:min(len(data), MaxLine+1)], '\n')
	if end >= 0 {
		dst = append(dst, p.full...)
		dst = append(dst, data[:end+1]...)
		return dst, data[end+1:]
	}
	end = min(len(data), MaxLine)
	dst = append(dst, p.partial...)
	dst = append(dst, data[:end]...)
	return append(dst, '\n'), data[end:]
}
