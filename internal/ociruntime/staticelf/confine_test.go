package staticelf

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/privilege"
)

// TestWaitingProgramsAreConfined: no process of the same user can trace the programs that wait, they have neither
// capabilities nor a way to new ones, and what is made to run in them gets no other system call than theirs.
func TestWaitingProgramsAreConfined(t *testing.T) {
	privilege.Root(t)
	pause, err := Pause()
	if err != nil {
		t.Fatal(err)
	}
	wait, err := Wait()
	if err != nil {
		t.Fatal(err)
	}
	for name, program := range map[string][]byte{"pause": pause, "wait": wait} {
		t.Run(name, func(t *testing.T) {
			cmd, closeStdin := run(t, program, "x")
			defer closeStdin()
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			dir := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid))
			awaitPause(t, cmd.Process.Pid)
			status, err := os.ReadFile(filepath.Join(dir, "status"))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
				if !strings.Contains(string(status), want) {
					t.Errorf("status has no %q:\n%s", want, status)
				}
			}
			if got := syscallIn(t, cmd.Process.Pid, unix.SYS_UNSHARE, unix.CLONE_NEWUSER); got != -int64(syscall.EPERM) {
				t.Errorf("a system call that is not its own: got %d, want EPERM", got)
			}
			awaitPause(t, cmd.Process.Pid)
			if got := syscallIn(t, cmd.Process.Pid, unix.SYS_GETPID, 0); got != -int64(syscall.EPERM) {
				t.Errorf("a harmless system call that is not its own: got %d, want EPERM", got)
			}
		})
	}
}

// awaitPause returns when a process waits for ever.
func awaitPause(t *testing.T, pid int) {
	t.Helper()
	waiting := "34 " // pause
	if runtime.GOARCH == "arm64" {
		waiting = "73 " // ppoll
	}
	for call := ""; !strings.HasPrefix(call, waiting); {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "syscall"))
		if err != nil {
			t.Fatalf("it has ended: %v", err)
		}
		call = string(text)
	}
}
