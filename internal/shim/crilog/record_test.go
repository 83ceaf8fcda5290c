package crilog

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// FuzzRecords: the records of any output, in any batches, give the output back.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte("\n\n"), 2)
	f.Add(bytes.Repeat([]byte("x"), MaxLine+1), 100)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		if size <= 0 {
			size = 1
		}
		p := newPrefixes(time.Unix(0, 0), Stdout)
		var log []byte
		for rest := data; len(rest) > 0; {
			one := rest[:min(size, len(rest))]
			rest = rest[len(one):]
			for len(one) > 0 {
				log, one = p.appendRecord(log, one)
			}
		}
		var got []byte
		for line := range bytes.Lines(log) {
			content, found := bytes.CutPrefix(line, p.full)
			if !found {
				content, found = bytes.CutPrefix(line, p.partial)
				content = bytes.TrimSuffix(content, []byte("\n"))
			}
			if !found || len(content) > MaxLine+1 {
				t.Fatalf("bad record %.80q", line)
			}
			got = append(got, content...)
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("got %d bytes, want %d", len(got), len(data))
		}
	})
}

// FuzzSpool: a damaged spool never panics a successor.
func FuzzSpool(f *testing.F) {
	f.Add([]byte(fmt.Sprintf("%064d", 0)))
	f.Fuzz(func(_ *testing.T, text []byte) {
		parseSpool(text)
	})
}
