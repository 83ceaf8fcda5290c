package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const stamp = "2026-03-01T12:00:00.123456789Z"

func TestParseLine(t *testing.T) {
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		in   string
		want Line
	}{
		{stamp + " stdout F hello world", Line{Time: at, Text: []byte("hello world")}},
		{stamp + " stderr P part", Line{Time: at, Stderr: true, Partial: true, Text: []byte("part")}},
		{stamp + " stdout P:x part", Line{Time: at, Partial: true, Text: []byte("part")}},
		{stamp + " stdout F ", Line{Time: at}},
		{stamp + " stdout F", Line{Time: at}},
		{stamp + " stdlog F x", Line{Text: []byte(stamp + " stdlog F x")}},
		{"yesterday stdout F x", Line{Text: []byte("yesterday stdout F x")}},
		{"", Line{}},
	} {
		got := ParseLine([]byte(tc.in))
		if !got.Time.Equal(tc.want.Time) || got.Stderr != tc.want.Stderr || got.Partial != tc.want.Partial ||
			!bytes.Equal(got.Text, tc.want.Text) {
			t.Errorf("ParseLine(%q) = %+v, want %+v", tc.in, got, tc.want)
		}
	}
}

// Whatever a file holds, a record gives a line without a panic, and nothing of
// the text is invented.
func FuzzParseLine(f *testing.F) {
	f.Add([]byte(stamp + " stdout F hello"))
	f.Add([]byte(stamp + " stderr P"))
	f.Add([]byte("  "))
	f.Add([]byte("\x00 stdout F x"))
	f.Fuzz(func(t *testing.T, record []byte) {
		if line := ParseLine(record); !bytes.HasSuffix(record, line.Text) {
			t.Errorf("text %q is not the end of record %q", line.Text, record)
		}
	})
}

// sink joins the output as `berth logs` shows it.
type sink struct{ out, err strings.Builder }

func (s *sink) emit(l Line) error {
	w := &s.out
	if l.Stderr {
		w = &s.err
	}
	w.Write(l.Text)
	if !l.Partial {
		w.WriteByte('\n')
	}
	return nil
}

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReadAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	long := strings.Repeat("x", 3*blockSize)
	write(t, path, stamp+" stdout F one\n"+stamp+" stderr F bad\n"+stamp+" stdout P tw\n"+stamp+" stdout F o\n"+
		stamp+" stdout F "+long+"\n"+stamp+" stdout F torn")
	var got sink
	if err := Read(t.Context(), path, Options{Tail: -1}, got.emit); err != nil {
		t.Fatal(err)
	}
	if want := "one\ntwo\n" + long + "\ntorn"; got.out.String() != want {
		t.Errorf("stdout is %d bytes, want %d", got.out.Len(), len(want))
	}
	if got.err.String() != "bad\n" {
		t.Errorf("stderr %q, want bad", got.err.String())
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	long := strings.Repeat("y", 2*blockSize)
	write(t, path, stamp+" stdout F 1\n"+stamp+" stdout P 2a\n"+stamp+" stdout P 2b\n"+stamp+" stdout F 2c\n"+
		stamp+" stdout F "+long+"\n"+stamp+" stdout F 4\n"+stamp+" stdout P 5\n")
	for _, tc := range []struct {
		tail int
		want string
	}{
		{0, ""},
		{1, "5"},
		{2, "4\n5"},
		{3, long + "\n4\n5"},
		{4, "2a2b2c\n" + long + "\n4\n5"},
		{5, "1\n2a2b2c\n" + long + "\n4\n5"},
		{99, "1\n2a2b2c\n" + long + "\n4\n5"},
		{-1, "1\n2a2b2c\n" + long + "\n4\n5"},
	} {
		var got sink
		if err := Read(t.Context(), path, Options{Tail: tc.tail}, got.emit); err != nil {
			t.Fatal(err)
		}
		if got.out.String() != tc.want {
			t.Errorf("tail %d gives %d bytes %.40q…, want %d", tc.tail, got.out.Len(), got.out.String(), len(tc.want))
		}
	}
}

func TestTailOfEmptyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, "")
	var got sink
	if err := Read(t.Context(), path, Options{Tail: 5}, got.emit); err != nil {
		t.Fatal(err)
	}
	if got.out.Len() != 0 {
		t.Errorf("an empty log gives %q", got.out.String())
	}
}

func TestSince(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, "2026-03-01T12:00:00Z stdout F old\n2026-03-01T13:00:00Z stdout F new\n")
	var got sink
	since := time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC)
	if err := Read(t.Context(), path, Options{Tail: -1, Since: since}, got.emit); err != nil {
		t.Fatal(err)
	}
	if got.out.String() != "new\n" {
		t.Errorf("since 12:30 gives %q, want new", got.out.String())
	}
}

func TestMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := Read(t.Context(), path, Options{}, (&sink{}).emit); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want os.ErrNotExist", err)
	}
	ended := make(chan struct{})
	if err := Read(t.Context(), path, Options{Ended: ended}, (&sink{}).emit); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error while following %v, want os.ErrNotExist", err)
	}
}

// Following loses nothing: not what is written in pieces, not across a
// rotation, and not what is written just before the end.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	write(t, path, stamp+" stdout F 0\n")
	ended := make(chan struct{})
	lines := make(chan string, 100)
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		done <- Read(ctx, path, Options{Tail: -1, Ended: ended}, func(l Line) error {
			lines <- string(l.Text)
			return nil
		})
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-lines:
			if got != want {
				t.Fatalf("line %q, want %q", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("line %q did not come", want)
		}
	}
	expect("0")
	write(t, path, stamp+" stdout F fir")
	write(t, path, "st\n")
	expect("first")
	for i := range 3 {
		write(t, path, fmt.Sprintf("%s stdout F last of %d\n", stamp, i))
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
			t.Fatal(err)
		}
		write(t, path, fmt.Sprintf("%s stdout F first of %d\n", stamp, i+1))
		expect(fmt.Sprintf("last of %d", i))
		expect(fmt.Sprintf("first of %d", i+1))
	}
	write(t, path, stamp+" stdout F end\n"+stamp+" stdout F torn")
	close(ended)
	expect("end")
	expect("torn")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestFollowCancelled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, stamp+" stdout F 0\n")
	ctx, cancel := context.WithCancel(t.Context())
	err := Read(ctx, path, Options{Tail: -1, Ended: make(chan struct{})}, func(Line) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

func TestEmitError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, stamp+" stdout F 0\n")
	broken := errors.New("broken pipe")
	if err := Read(t.Context(), path, Options{Tail: -1}, func(Line) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("error %v, want that of emit", err)
	}
}
