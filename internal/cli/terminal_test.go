package cli

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/berth-runtime/berth/internal/cli/session"
)

// chunks gives one chunk per Read, as a terminal does.
type chunks struct{ left []string }

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.left[0])
	c.left = c.left[1:]
	return n, nil
}

func (*chunks) Close() error { return nil }

func TestDetachKeys(t *testing.T) {
	for _, tc := range []struct {
		name, in, want string
		detached       bool
	}{
		{"plain", "ls|\n", "ls\n", false},
		{"both_at_once", "ab\x10\x11cd", "ab", true},
		{"one_by_one", "ab|\x10|\x11|cd", "ab", true},
		{"only_first", "\x10a", "\x10a", false},
		{"first_at_the_end", "a\x10", "a\x10", false},
		{"first_twice", "\x10\x10\x11", "\x10", true},
		{"second_alone", "\x11", "\x11", false},
		{"apart", "\x10x\x11", "\x10x\x11", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := &detachable{ReadCloser: &chunks{left: strings.Split(tc.in, "|")}}
			var got strings.Builder
			buf := make([]byte, 16)
			var err error
			for err == nil {
				var n int
				n, err = d.Read(buf)
				got.Write(buf[:n])
			}
			if got.String() != tc.want {
				t.Errorf("passed on %q, want %q", got.String(), tc.want)
			}
			if errors.Is(err, session.ErrDetached) != tc.detached {
				t.Errorf("ended with %v, want detached %v", err, tc.detached)
			}
		})
	}
}

// Closing our input frees a Read that waits, and takes nothing that was typed
// for the next reader.
func TestStdinClose(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	in, err := openStdin(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("one"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := in.Read(buf); err != nil || string(buf[:n]) != "one" {
		t.Fatalf("Read gives %q (%v), want one", buf[:n], err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := in.Read(buf)
		ended <- err
	}()
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("Read of a closed input gives %v, want EOF", err)
	}
	if _, err := w.WriteString("two"); err != nil {
		t.Fatal(err)
	}
	if n, err := in.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("Read after Close took %q (%v)", buf[:n], err)
	}
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "two" {
		t.Errorf("what was typed later reads as %q (%v), want two", buf[:n], err)
	}
	if err := in.release(); err != nil {
		t.Error(err)
	}
}
