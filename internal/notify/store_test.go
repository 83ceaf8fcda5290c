package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/isolation"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/servicemanager"
)

// heir makes the test binary a process that inherits: see TestMain.
const heir = "BERTH_NOTIFY_TEST_HEIR"

// TestMain plays the heir if it is to be one.
func TestMain(m *testing.M) {
	if os.Getenv(heir) == "" {
		os.Exit(isolation.Main(m))
	}
	if err := inherit(os.Stdout); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// inherit says what was handed over to this process, and what a child gets of it.
func inherit(out io.Writer) error {
	m, err := Find()
	if err != nil {
		return err
	}
	if m.Store() == nil {
		fmt.Fprintln(out, "no store")
	} else {
		taken := m.Store().Take()
		for name, f := range taken {
			text, err := io.ReadAll(f)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%s: %s\n", name, text)
		}
		if again := m.Store().Take(); again != nil {
			fmt.Fprintln(out, "again", again)
		}
	}
	child, err := exec.CommandContext(context.Background(), "sh", "-c", "env; test ! -e /proc/$$/fd/3 || echo descriptor 3; test ! -e /proc/$$/fd/4 || echo descriptor 4").Output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(child)) {
		if strings.HasPrefix(line, "LISTEN_") || strings.HasPrefix(line, "FDSTORE") || strings.HasPrefix(line, "NOTIFY") || strings.HasPrefix(line, "descriptor") {
			fmt.Fprintf(out, "a child gets %s", line)
		}
	}
	return nil
}

// TestInherit: what the service manager kept comes back by name, once, and no other process gets it; what is for another process
// is left alone, and what makes no sense is refused.
func TestInherit(t *testing.T) {
	leakcheck.Check(t)
	const listen = "NOTIFY_SOCKET=/nowhere LISTEN_FDS=2 LISTEN_FDNAMES=one:two "
	for name, tc := range map[string]struct{ env, want string }{
		"two":      {listen + "FDSTORE=5 LISTEN_PID=$$", "one: first\ntwo: second\n"},
		"twice":    {"NOTIFY_SOCKET=/nowhere LISTEN_FDS=2 LISTEN_FDNAMES=one:one FDSTORE=5 LISTEN_PID=$$", "one: first\n"},
		"no_store": {listen + "LISTEN_PID=$$", "no store\n"},
		"none":     {"LISTEN_FDS=2 LISTEN_FDNAMES=one:two FDSTORE=5 LISTEN_PID=$$", "no store\n"},
		"others":   {listen + "FDSTORE=5 LISTEN_PID=1", "a child gets descriptor 3\na child gets descriptor 4\n"},
		"garbage":  {"LISTEN_PID=$$ LISTEN_FDS=x", "LISTEN_FDS \"x\" is not a number of descriptors: invalid argument\n"},
		"too_many": {"LISTEN_PID=$$ LISTEN_FDS=99", "LISTEN_FDS \"99\" is more than there are: bad file descriptor\n"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "sh", "-c", tc.env+` exec "$0"`, os.Args[0])
			cmd.Env = append(os.Environ(), heir+"=1")
			for _, text := range []string{"first", "second"} {
				file := filepath.Join(t.TempDir(), "file")
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				f, err := os.Open(file)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			}
			out, _ := cmd.Output()
			// Which of two comes first is left to chance.
			lines := bytes.SplitAfter(out, []byte("\n"))
			if len(lines) == 3 && bytes.Compare(lines[0], lines[1]) > 0 {
				lines[0], lines[1] = lines[1], lines[0]
			}
			if got := string(bytes.Join(lines, nil)); got != tc.want {
				t.Errorf("the heir says %q, want %q", got, tc.want)
			}
		})
	}
}

// TestStore: the manager gets a duplicate of what it is to keep, with the mode that the open file has, and hears what to
// drop. One that does not listen costs no more than the deadline.
func TestStore(t *testing.T) {
	leakcheck.Check(t)
	manager := servicemanager.Listen(t, filepath.Join(leakcheck.Dir(t), "notify"))
	t.Setenv(variable, manager.Path)
	t.Setenv(capacityVariable, "7")
	m, err := Find()
	if err != nil || m.Store() == nil {
		t.Fatalf("found %v, %v, want a manager with a store", m, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := m.Store().Keep(t.Context(), "pipe", w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	text, kept := manager.Hear(t)
	if want := "FDSTORE=1\nFDPOLL=0\nFDNAME=pipe"; text != want || kept == nil {
		t.Fatalf("the manager hears %q and gets %v, want %q and a descriptor", text, kept, want)
	}
	if blocking, err := unix.FcntlInt(kept.Fd(), unix.F_GETFL, 0); err != nil || blocking&unix.O_NONBLOCK == 0 {
		t.Errorf("what is kept has the flags %#x, %v, want it non-blocking as before", blocking, err)
	}
	if _, err := kept.WriteString("here"); err != nil {
		t.Error(err)
	}
	if err := kept.Close(); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(r); string(got) != "here" {
		t.Errorf("the pipe has %q, %v, want what was written to what is kept", got, err)
	}
	if err := m.Store().Drop(t.Context(), "pipe"); err != nil {
		t.Fatal(err)
	}
	if text, _ := manager.Hear(t); text != "FDSTOREREMOVE=1\nFDNAME=pipe" {
		t.Errorf("the manager hears %q", text)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for err == nil { // until its queue is full
		err = m.Store().Keep(ctx, "again", r)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a manager that hangs: got %v", err)
	}
}
