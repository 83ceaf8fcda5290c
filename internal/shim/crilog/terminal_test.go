package crilog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal gives the fixture the near side of a terminal in place of a FIFO.
func terminal(t *testing.T) (f *fixture, far *os.File) {
	t.Helper()
	f = setUp(t)
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Close(f.r), unix.Dup3(fd, f.r, unix.O_CLOEXEC), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	return f, far
}

func (f *fixture) show(t *testing.T, far *os.File, text string) {
	t.Helper()
	for text != "" {
		n := min(len(text), 1000)
		if _, err := far.WriteString(text[:n]); err != nil {
			t.Fatal(err)
		}
		text = text[n:]
		f.copyAll(t, func() (int, error) { return f.CopyTerminal(f.r) })
	}
}

// TestTerminalRecords: the carriage return that a terminal adds is not logged, those of the program are, and lines
// are whole whatever the reads were.
func TestTerminalRecords(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	for _, tc := range []struct {
		name string
		show []string
		want []string
	}{
		{"lines", []string{"hi\nthere\n"}, []string{"stdout F hi", "stdout F there"}},
		{"empty_lines", []string{"\n\na\n"}, []string{"stdout F ", "stdout F ", "stdout F a"}},
		{"progress", []string{"1%\r2%\r", "3%\ndone\n"}, []string{"stdout F 1%\r2%\r3%", "stdout F done"}},
		{"own_return", []string{"a\r\n"}, []string{"stdout F a\r"}},
		{"pieces", []string{"be", "gin", "ning\n"}, []string{"stdout F beginning"}},
		{"longest", []string{long + "\n"}, []string{"stdout F " + long}},
		{"longer", []string{long + "y\n"}, []string{"stdout P " + long, "stdout F y"}},
		{"twice", []string{long + long + "\n"}, []string{"stdout P " + long, "stdout F " + long}},
		{"no_end", []string{"a\nb"}, []string{"stdout F a", "stdout P b", "stdout F "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, far := terminal(t)
			for _, text := range tc.show {
				f.show(t, far, text)
			}
			if err := f.EndStreams(); err != nil {
				t.Fatal(err)
			}
			if got := f.records(t); !slices.Equal(got, tc.want) {
				t.Errorf("got %.200q, want %.200q", got, tc.want)
			}
		})
	}
}

// TestTerminalTap: an attached client gets what the terminal shows, with its carriage returns.
func TestTerminalTap(t *testing.T) {
	f, far := terminal(t)
	var got strings.Builder
	f.Tap = func(_ Stream, data []byte) { got.Write(data) }
	f.show(t, far, "hi\nthere")
	if got.String() != "hi\r\nthere" {
		t.Errorf("got %q", got.String())
	}
}

// TestTerminalSuccessor: the beginning of a line that was read from a terminal survives its reader.
func TestTerminalSuccessor(t *testing.T) {
	f, far := terminal(t)
	f.show(t, far, "one\ntw")
	if got := f.records(t); !slices.Equal(got, []string{"stdout F one"}) {
		t.Errorf("got %q", got)
	}
	inode := f.Inode()
	if err := f.Close(context.Background()); err != nil { // like a SIGKILL: nothing is flushed
		t.Fatal(err)
	}
	var err error
	if f.Writer, err = openWriter(f.log, f.spool, inode); err != nil {
		t.Fatal(err)
	}
	f.show(t, far, "o\n")
	if got := f.records(t); !slices.Equal(got, []string{"stdout F one", "stdout P tw", "stdout F o"}) {
		t.Errorf("got %q", got)
	}
}

// TestEndStreams: an empty record completes a stream that ends with a piece of a line, also when a successor ends it.
func TestEndStreams(t *testing.T) {
	for _, killed := range []bool{false, true} {
		f := setUp(t)
		f.put(t, Stdout, "whole\nbegun")
		f.finish(t, Stdout)
		f.put(t, Stderr, "oops\n")
		if killed {
			inode := f.Inode()
			if err := f.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			var err error
			if f.Writer, err = openWriter(f.log, f.spool, inode); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the second time there is nothing to complete
			if err := f.EndStreams(); err != nil {
				t.Fatal(err)
			}
		}
		want := []string{"stdout F whole", "stdout P begun", "stderr F oops", "stdout F "}
		if got := f.records(t); !slices.Equal(got, want) {
			t.Errorf("killed %v: got %q, want %q", killed, got, want)
		}
	}
}
