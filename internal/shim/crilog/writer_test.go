package crilog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/privilege"
)

var recordPattern = regexp.MustCompile(`^(\S{30}) (stdout|stderr) ([FP]) (.*)$`)

// parse checks every record of a log and returns the content of both streams.
func parse(t testing.TB, log []byte) map[string]string {
	t.Helper()
	content := map[string]string{}
	for line := range bytes.Lines(log) {
		m := recordPattern.FindSubmatch(bytes.TrimSuffix(line, []byte("\n")))
		if m == nil {
			t.Fatalf("not a record: %.100q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, string(m[1])); err != nil {
			t.Fatalf("timestamp: %v", err)
		}
		if len(m[4]) > MaxLine {
			t.Fatalf("record of %d bytes", len(m[4]))
		}
		content[string(m[2])] += string(m[4])
		if m[3][0] == 'F' {
			content[string(m[2])] += "\n"
		}
	}
	return content
}

type fixture struct {
	*Writer
	log, spool string
	r, w       int
}

func openWriter(log, spool string, inode uint64) (*Writer, error) {
	w := New(At("", log), spool)
	return w, w.Open(context.Background(), inode)
}

func setUp(t testing.TB) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{log: filepath.Join(dir, "0.log"), spool: filepath.Join(dir, "spool")}
	var err error
	if f.Writer, err = openWriter(f.log, f.spool, 0); err != nil {
		t.Fatal(err)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	f.r, f.w = p[0], p[1]
	t.Cleanup(func() {
		_ = f.Close(context.Background())
		_ = unix.Close(f.r)
		_ = unix.Close(f.w)
	})
	return f
}

func (f *fixture) put(t testing.TB, stream Stream, text string) {
	t.Helper()
	if _, err := unix.Write(f.w, []byte(text)); err != nil {
		t.Fatal(err)
	}
	f.copyAll(t, func() (int, error) { return f.Copy(stream, f.r) })
}

// copyAll calls move until nothing is ready.
func (f *fixture) copyAll(t testing.TB, move func() (int, error)) {
	t.Helper()
	for {
		if _, err := move(); errors.Is(err, unix.EAGAIN) || errors.Is(err, ErrUnfinished) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// finish logs the beginning of a line as a piece.
func (f *fixture) finish(t testing.TB, stream Stream) {
	t.Helper()
	f.copyAll(t, func() (int, error) { return f.CopyAll(stream, f.r) })
}

func (f *fixture) content(t testing.TB) map[string]string {
	t.Helper()
	log, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, log)
}

// records returns stream, tag and content of each record.
func (f *fixture) records(t testing.TB) []string {
	t.Helper()
	log, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	parse(t, log)
	var list []string
	for line := range strings.Lines(string(log)) {
		list = append(list, strings.TrimSuffix(line[len(stampLayout)+1:], "\n"))
	}
	return list
}

func TestLinesPiecesAndSplits(t *testing.T) {
	f := setUp(t)
	long := strings.Repeat("x", MaxLine)
	var want string
	for _, text := range []string{"one\ntwo\n", "pie", "ce\n", "\n", long + "\n", long + "y\n", long + long + "z"} {
		f.put(t, Stdout, text)
		want += text
	}
	f.finish(t, Stdout)
	f.put(t, Stderr, "oops\n")
	got := f.content(t)
	if got["stdout"] != want || got["stderr"] != "oops\n" {
		t.Errorf("got %d bytes of stdout, want %d; stderr %q", len(got["stdout"]), len(want), got["stderr"])
	}
	if info, err := os.Stat(f.spool); err != nil || info.Size() != spoolHeader {
		t.Errorf("spool: %v %v", info.Size(), err)
	}
}

// TestNoLineIsTorn writes lines in pieces of every size: as long as the writer
// does not pause, only lines over MaxLine are split.
func TestNoLineIsTorn(t *testing.T) {
	f := setUp(t)
	var text strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&text, "line %d %s\n", i, strings.Repeat("x", i%97))
	}
	text.WriteString(strings.Repeat("y", 2*MaxLine+5) + "\n")
	rest := text.String()
	for i := 0; rest != ""; i++ {
		n := min(1+i*7%5000, len(rest))
		f.put(t, Stdout, rest[:n])
		rest = rest[n:]
	}
	log, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	if got := parse(t, log)["stdout"]; got != text.String() {
		t.Errorf("got %d bytes, want %d", len(got), text.Len())
	}
	if got := bytes.Count(log, []byte(" stdout P ")); got != 2 {
		t.Errorf("%d pieces, want the two of the line over MaxLine", got)
	}
}

func TestReopenLosesNothing(t *testing.T) {
	f := setUp(t)
	f.put(t, Stdout, "before\n")
	if err := os.Rename(f.log, f.log+".1"); err != nil {
		t.Fatal(err)
	}
	f.put(t, Stdout, "between\n")
	refused := errors.New("refused")
	if err := f.Reopen(t.Context(), func(uint64) error { return refused }); !errors.Is(err, refused) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(f.log); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a failed reopen left a file: %v", err)
	}
	f.put(t, Stdout, "still\n")
	if err := f.Reopen(t.Context(), func(uint64) error { return nil }); err != nil {
		t.Fatal(err)
	}
	f.put(t, Stdout, "after\n")
	old, err := os.ReadFile(f.log + ".1")
	if err != nil {
		t.Fatal(err)
	}
	if got := parse(t, old)["stdout"]; got != "before\nbetween\nstill\n" {
		t.Errorf("old file: %q", got)
	}
	if got := f.content(t)["stdout"]; got != "after\n" {
		t.Errorf("new file: %q", got)
	}
}

// TestReopenFIFO: a FIFO without a reader in the log's place does not hold the container up.
func TestReopenFIFO(t *testing.T) {
	f := setUp(t)
	if err := os.Rename(f.log, f.log+".1"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(f.log, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Reopen(t.Context(), func(uint64) error { return nil }); !errors.Is(err, unix.ENXIO) {
		t.Errorf("reopen: %v, want %v", err, unix.ENXIO)
	}
}

// TestFullDisk logs to a full filesystem: output is dropped and counted, no torn
// record stays, and logging goes on once there is room. The fault is
// reported at once, and not with every line.
func TestFullDisk(t *testing.T) {
	privilege.Root(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	f := setUp(t)
	w, err := openWriter(filepath.Join(dir, "0.log"), filepath.Join(t.TempDir(), "spool"), 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close(context.Background())
	f.Writer, f.log = w, filepath.Join(dir, "0.log")
	var reported []error
	w.Fault = func(_ uint64, why error) { reported = append(reported, why) }
	f.put(t, Stdout, "first\n")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want a full disk", err)
	}
	lost := strings.Repeat("lost line\n", 3000)
	f.put(t, Stdout, lost)
	if n, err := f.Dropped(); n != uint64(len(lost)) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("dropped %d of %d: %v", n, len(lost), err)
	}
	f.put(t, Stdout, lost)
	if len(reported) != 1 || !errors.Is(reported[0], syscall.ENOSPC) {
		t.Errorf("reported %v, want once that the disk is full", reported)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	f.put(t, Stdout, "last\n")
	if got := f.content(t)["stdout"]; got != "first\nlast\n" {
		t.Errorf("got %q", got)
	}
	if err := f.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestSuccessorFinishes stops a batch after every byte that its log may have
// reached, and lets a successor finish it.
func TestSuccessorFinishes(t *testing.T) {
	data := "alpha\nbeta\n" + strings.Repeat("g", MaxLine+5) + "\nend"
	f := setUp(t)
	f.put(t, Stderr, "earlier\n")
	base, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	f.put(t, Stderr, data)
	f.finish(t, Stderr)
	whole, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	inode := f.Inode()
	for cut := len(base); cut <= len(whole); cut += 1 + (len(whole)-cut)/500 {
		if err := os.WriteFile(f.log, whole[:cut], 0o600); err != nil { // the same inode
			t.Fatal(err)
		}
		header := make([]byte, spoolHeader)
		binary.LittleEndian.PutUint64(header, spoolMagic)
		binary.LittleEndian.PutUint64(header[8:], uint64(len(base)))
		binary.LittleEndian.PutUint64(header[16:], inode)
		header[24] = byte(Stderr)
		if err := os.WriteFile(f.spool, slices.Concat(header, []byte(data)), 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := openWriter(f.log, f.spool, inode)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		log, err := os.ReadFile(f.log)
		if err != nil {
			t.Fatal(err)
		}
		if len(log) != len(whole) {
			t.Fatalf("cut at %d: %d bytes, want %d", cut, len(log), len(whole))
		}
		if got := parse(t, log)["stderr"]; got != "earlier\n"+data {
			t.Fatalf("cut at %d: got %d bytes of content", cut, len(got))
		}
	}
}

// TestSuccessorFindsRenamedLog: a log which was renamed while no supervisor ran is
// written to until it is reopened; nothing is made at its old path.
func TestSuccessorFindsRenamedLog(t *testing.T) {
	f := setUp(t)
	f.put(t, Stdout, "before\n")
	inode := f.Inode()
	if err := f.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(f.log, f.log+".rotated"); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.Writer, err = openWriter(f.log, f.spool, inode); err != nil {
		t.Fatal(err)
	}
	f.put(t, Stdout, "after\n")
	if _, err := os.Stat(f.log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want no file at the old path", err)
	}
	old, err := os.ReadFile(f.log + ".rotated")
	if err != nil {
		t.Fatal(err)
	}
	if got := parse(t, old)["stdout"]; got != "before\nafter\n" {
		t.Errorf("got %q", got)
	}
}

func TestEndOfFile(t *testing.T) {
	f := setUp(t)
	f.put(t, Stdout, "x")
	if err := unix.Close(f.w); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Copy(Stdout, f.r); !errors.Is(err, ErrUnfinished) {
		t.Errorf("got %v before the rest was taken", err)
	}
	if n, err := f.CopyAll(Stdout, f.r); n != 1 || err != nil {
		t.Errorf("took %d bytes, %v", n, err)
	}
	if _, err := f.Copy(Stdout, f.r); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkCopy(b *testing.B) {
	for name, line := range map[string]string{"short": "hello world, line\n", "long": strings.Repeat("z", 1000) + "\n"} {
		b.Run(name, func(b *testing.B) {
			f := setUp(b)
			text := strings.Repeat(line, batch/len(line))
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				f.put(b, Stdout, text)
				if err := os.Truncate(f.log, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
