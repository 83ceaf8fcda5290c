package crilog

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminalFixture has a writer, the near and far side of a terminal, and the FIFO between them and the log.
type terminalFixture struct {
	*fixture
	near, far, fifo *os.File
}

func setUpTerminal(t testing.TB) *terminalFixture {
	t.Helper()
	f := &terminalFixture{fixture: setUp(t)}
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.near = os.NewFile(uintptr(fd), "near")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if f.far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(f.log), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if fd, err = unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	f.fifo = os.NewFile(uintptr(fd), path)
	SizeFIFO(fd)
	t.Cleanup(func() {
		for _, file := range []*os.File{f.near, f.far, f.fifo} {
			_ = file.Close()
		}
	})
	return f
}

func (f *terminalFixture) copyTerminal() (int, error) {
	return f.CopyTerminal(int(f.near.Fd()), int(f.fifo.Fd()))
}

// show writes to the terminal and copies what it shows.
func (f *terminalFixture) show(t testing.TB, text string) {
	t.Helper()
	for text != "" {
		n := min(len(text), 1000)
		if _, err := f.far.WriteString(text[:n]); err != nil {
			t.Fatal(err)
		}
		text = text[n:]
		f.copyAll(t, f.copyTerminal)
	}
}

// end logs what is left, as of a container that has ended.
func (f *terminalFixture) end(t testing.TB) {
	t.Helper()
	f.copyAll(t, func() (int, error) { return f.CopyAll(Terminal, int(f.fifo.Fd())) })
	if err := f.EndStreams(); err != nil {
		t.Fatal(err)
	}
}

// TestTerminalRecords: the carriage return that a terminal adds is not logged, those of the program are, and lines
// are whole whatever the reads were.
func TestTerminalRecords(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	single := strings.Split("printed one by one\n", "")
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
		{"characters", single, []string{"stdout F printed one by one"}},
		{"no_end", []string{"a\nb"}, []string{"stdout F a", "stdout P b", "stdout F "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := setUpTerminal(t)
			for _, text := range tc.show {
				f.show(t, text)
			}
			f.end(t)
			if got := f.records(t); !slices.Equal(got, tc.want) {
				t.Errorf("got %.200q, want %.200q", got, tc.want)
			}
		})
	}
}

// TestTerminalPieces: the FIFO of a terminal takes a number of pieces; when a line has more, they are logged as pieces.
func TestTerminalPieces(t *testing.T) {
	f := setUpTerminal(t)
	var text strings.Builder
	for i := range 600 {
		f.show(t, string(rune('a'+i%26)))
		text.WriteByte(byte('a' + i%26))
	}
	f.show(t, "\n")
	if got := f.content(t)["stdout"]; got != text.String()+"\n" {
		t.Errorf("got %q, want %q", got, text.String())
	}
}

// TestTerminalTap: an attached client gets what the terminal shows at once, with its carriage returns, and once.
func TestTerminalTap(t *testing.T) {
	f := setUpTerminal(t)
	var got strings.Builder
	f.Tap = func(_ Stream, data []byte) { got.Write(data) }
	want := ""
	for _, text := range []string{"hi\nthere", ", ", "you", strings.Repeat("x", 3*MaxLine), "\n\n", "a\r"} {
		f.show(t, text)
		want += strings.ReplaceAll(text, "\n", "\r\n")
		if got.String() != want {
			t.Errorf("got %.200q after %.20q, want %.200q", got.String(), text, want)
		}
	}
	f.end(t)
	if got.String() != want {
		t.Errorf("got %.200q in the end, want %.200q", got.String(), want)
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
