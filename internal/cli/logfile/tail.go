package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

const (
	// blockSize is how much is read at once.
	blockSize = 64 << 10
	// headSize is enough to see the time, the stream and the tag of a record.
	headSize = 80
)

// tailOffset returns where the last count lines of output begin. Records of a
// line that was written in parts count once.
func tailOffset(f io.ReaderAt, size int64, count int) (int64, error) {
	end, err := lastRecordEnd(f, size)
	if err != nil {
		return 0, err
	}
	if count == 0 {
		return end, nil
	}
	seen := 0
	for at := end; at > 0; {
		start, err := recordStart(f, at)
		if err != nil {
			return 0, err
		}
		partial, err := isPartial(f, start, at)
		if err != nil {
			return 0, err
		}
		// The record that ends a line is the first of it from here. An
		// unfinished line at the very end counts as one.
		if !partial || at == end {
			seen++
		}
		if seen > count {
			return at, nil
		}
		at = start
	}
	return 0, nil
}

// lastRecordEnd is where the last whole record ends: behind it there may be one
// that is being written.
func lastRecordEnd(f io.ReaderAt, size int64) (int64, error) {
	if size == 0 {
		return 0, nil
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], size-1); err != nil {
		return 0, fmt.Errorf("read the end of the log: %w", err)
	}
	if last[0] == '\n' {
		return size, nil
	}
	return recordStart(f, size)
}

// recordStart returns where the record that ends just before end begins.
func recordStart(f io.ReaderAt, end int64) (int64, error) {
	buf := make([]byte, blockSize)
	for hi := end - 1; hi > 0; {
		lo := max(0, hi-blockSize)
		block := buf[:hi-lo]
		if _, err := f.ReadAt(block, lo); err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read the log backwards: %w", err)
		}
		if i := bytes.LastIndexByte(block, '\n'); i >= 0 {
			return lo + int64(i) + 1, nil
		}
		hi = lo
	}
	return 0, nil
}

// isPartial says whether the record goes on in a later one.
func isPartial(f io.ReaderAt, start, end int64) (bool, error) {
	head := make([]byte, min(headSize, end-start))
	if _, err := f.ReadAt(head, start); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read the log backwards: %w", err)
	}
	return ParseLine(bytes.TrimSuffix(head, []byte{'\n'})).Partial, nil
}
