// Package crilog writes container log files in the format of the Container
// Runtime Interface, one record per line:
//
//	2026-01-02T15:04:05.123456789Z stdout F a whole line
//	2026-01-02T15:04:05.123456789Z stderr P a piece of a line, more follows
//
// A line longer than MaxLine is split into pieces. What has no line feed yet is
// a piece too, if the container ends or pauses before it is finished. When a stream
// ends with a piece, an empty record with the tag F completes it.
package crilog

import (
	"bytes"
	"time"
)

// MaxLine is the longest content of one record.
const MaxLine = 16 << 10

// recordHead is how many bytes a record adds to its content.
const recordHead = len(stampLayout) + len(" stdout F ") + len("\n")

// stampLayout has a fixed width, so that the length of a record follows from its
// content alone; recovery depends on that.
const stampLayout = "2006-01-02T15:04:05.000000000Z"

// Stream is one of a container's two output streams, or its terminal.
type Stream byte

// The streams. A terminal is logged as stdout, without the carriage return that it puts in front
// of each line feed.
const (
	Stdout   Stream = 'o'
	Stderr   Stream = 'e'
	Terminal Stream = 't'
)

// String returns the name of the stream in the log.
func (s Stream) String() string {
	if s == Stderr {
		return "stderr"
	}
	return "stdout"
}

// streams is a set of streams.
type streams byte

func bitOf(s Stream) streams {
	if s == Stderr {
		return 2
	}
	return 1
}

func (s streams) has(stream Stream) bool { return s&bitOf(stream) != 0 }

func (s *streams) set(stream Stream, on bool) {
	if *s &^= bitOf(stream); on {
		*s |= bitOf(stream)
	}
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

// affordable is how much of data makes records of at most budget bytes, at least one.
func affordable(data []byte, budget int) int {
	records := bytes.Count(data, []byte{'\n'}) + len(data)/MaxLine + 1
	if len(data)+records*recordHead <= budget {
		return len(data)
	}
	taken := 0
	for spent := 0; taken < len(data); {
		rest := data[taken:]
		length := bytes.IndexByte(rest[:min(len(rest), MaxLine+1)], '\n') + 1
		if length == 0 {
			length = min(len(rest), MaxLine)
		}
		if spent += length + recordHead; spent > budget && taken > 0 {
			break
		}
		taken += length
	}
	return taken
}
