package proc

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestReadSelf(t *testing.T) {
	s, err := Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if s.Parent != os.Getppid() || s.Started == 0 || s.Dead() {
		t.Errorf("got %+v", s)
	}
}

func TestOpenRefusesAnotherProcess(t *testing.T) {
	s, err := Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(os.Getpid(), s.Started+1); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}

// TestExitStatus asks about a zombie and then, where the kernel can tell (6.15),
// about a process that was reaped.
func TestExitStatus(t *testing.T) {
	for _, tc := range []struct {
		script string
		want   uint32
	}{{"exit 7", 7 << 8}, {"kill -9 $$", 9}} {
		cmd := exec.Command("/bin/sh", "-c", "read x; "+tc.script)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		s, err := Read(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		pidfd, err := Open(s.PID, s.Started)
		if err != nil {
			t.Fatal(err)
		}
		defer pidfd.Close()
		in.Close()
		if err := Wait(pidfd); err != nil {
			t.Fatal(err)
		}
		if got, err := ExitStatus(pidfd, s.PID, s.Started); err != nil || got != tc.want {
			t.Errorf("zombie: got %#x %v, want %#x", got, err, tc.want)
		}
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(s.PID, &ws, 0, nil); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // reaped above; it closes the pipe
		got, err := ExitStatus(pidfd, s.PID, s.Started)
		if errdefs.IsNotFound(err) && !exitInfoSupported(t) {
			continue
		}
		if err != nil || got != tc.want {
			t.Errorf("reaped: got %#x %v, want %#x", got, err, tc.want)
		}
	}
}

// exitInfoSupported asks whether the kernel is 6.15 or later.
func exitInfoSupported(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	return release >= "6.15" && len(release) > 3 && release[1] == '.' && release[3] != '.'
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (a) b) c) S 1 1 1 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 42 0 0"))
	f.Add([]byte(""))
	f.Add([]byte(")"))
	f.Fuzz(func(_ *testing.T, text []byte) {
		_, _ = parseStat(1, text)
	})
}
