package crilog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// copierEnv makes this program a copier: it holds the log, the spool and the inode of the log.
const copierEnv = "CRILOG_TEST_COPIER"

func TestMain(m *testing.M) {
	if args := os.Getenv(copierEnv); args != "" {
		if err := runCopier(strings.Split(args, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runCopier copies what is ready, when a byte comes on its standard input, in a thread whose ID it writes.
func runCopier(args []string) error {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() { // the end of this thread would be that of the process
		failed := make(chan error)
		go func() { failed <- runCopier(args) }()
		return <-failed
	}
	inode, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	w, err := openWriter(args[0], args[1], inode)
	if err != nil {
		return err
	}
	fmt.Println(unix.Gettid())
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	for err == nil {
		if args[3] == "terminal" {
			_, err = w.CopyTerminal(3, 4)
		} else {
			_, err = w.Copy(Stdout, 3)
		}
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, ErrUnfinished) {
		return nil
	}
	return err
}

// copyKilled runs a copier and kills it at its system call number n. It reports whether there were so many.
func (f *fixture) copyKilled(t *testing.T, n int, kind string, inode uint64, files ...*os.File) bool {
	t.Helper()
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{copierEnv + "=" + strings.Join([]string{f.log, f.spool, strconv.FormatUint(inode, 10), kind}, "\n"), "GODEBUG=asyncpreemptoff=1"}
	cmd.ExtraFiles, cmd.Stderr = files, os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var tid int
	if _, err := fmt.Fscanln(stdout, &tid); err != nil {
		t.Fatal(err)
	}
	if err := seize(tid); err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.Write([]byte{'\n'}); err != nil {
		t.Fatal(err)
	}
	killed := stopAt(t, tid, n)
	if killed {
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		stopAt(t, tid, n) // a tracer reaps its threads
	}
	if _, err := io.Copy(io.Discard, stdout); err != nil { // ends once every thread has ended
		t.Fatal(err)
	}
	err = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && killed && status.Signaled() {
		return true
	}
	if err != nil {
		t.Fatalf("the copier ended with %v", err)
	}
	return false
}

// seize traces a thread from now on.
func seize(tid int) error {
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, unix.PTRACE_O_TRACESYSGOOD, 0, 0); errno != 0 {
		return fmt.Errorf("seize thread: %w", errno)
	}
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_INTERRUPT, uintptr(tid), 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("interrupt thread: %w", errno)
	}
	return nil
}

// stopAt lets a traced thread run until it enters its system call number n, which is not executed if the thread is
// killed now. It returns false if the thread ends before.
func stopAt(t *testing.T, tid, n int) bool {
	t.Helper()
	for stops := 0; ; {
		var status unix.WaitStatus
		if _, err := unix.Wait4(tid, &status, unix.WALL, nil); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			t.Fatalf("wait for thread: %v", err)
		}
		if !status.Stopped() {
			return false
		}
		signal := status.StopSignal()
		switch {
		case signal == unix.SIGTRAP|0x80:
			if stops++; stops == 2*n+1 { // entries and exits alternate
				return true
			}
			signal = 0
		case status>>16 != 0: // the stop of PTRACE_INTERRUPT
			signal = 0
		}
		if err := unix.PtraceSyscall(tid, int(signal)); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatalf("continue thread: %v", err)
		}
	}
}

// killedText has lines that show a loss, a repetition and a line that is torn.
const killedText = "one\n\ntwo\nthree\n"

// killedCuts are where it is read apart: in a line, and in front of a line feed.
var killedCuts = []int{1, 3}

// TestKilledCopyOfTerminal kills the copier of a terminal at each of its system calls, for each place at which its output
// can be read apart. The log has each line once and whole.
func TestKilledCopyOfTerminal(t *testing.T) {
	for _, cut := range killedCuts {
		f := setUpTerminal(t)
		for n, killed := 0, true; killed; n++ {
			f.show(t, killedText[:cut])
			inode := f.Inode()
			if err := f.Close(context.Background()); err != nil { // nothing is flushed
				t.Fatal(err)
			}
			if _, err := f.far.WriteString(killedText[cut:]); err != nil {
				t.Fatal(err)
			}
			killed = f.copyKilled(t, n, "terminal", inode, f.near, f.fifo)
			f.succeed(t, inode)
			f.copyAll(t, f.copyTerminal)
			f.end(t)
			f.wantKilledText(t, cut, n)
		}
	}
}

// TestKilledCopy is TestKilledCopyOfTerminal for a FIFO.
func TestKilledCopy(t *testing.T) {
	for _, cut := range killedCuts {
		f := setUp(t)
		for n, killed := 0, true; killed; n++ {
			f.put(t, Stdout, killedText[:cut])
			inode := f.Inode()
			if err := f.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(f.w, []byte(killedText[cut:])); err != nil {
				t.Fatal(err)
			}
			fd, err := syscall.Dup(f.r)
			if err != nil {
				t.Fatal(err)
			}
			r := os.NewFile(uintptr(fd), "fifo")
			killed = f.copyKilled(t, n, "fifo", inode, r)
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			f.succeed(t, inode)
			f.put(t, Stdout, "")
			f.wantKilledText(t, cut, n)
		}
	}
}

// succeed opens the log like a successor.
func (f *fixture) succeed(t *testing.T, inode uint64) {
	t.Helper()
	var err error
	if f.Writer, err = openWriter(f.log, f.spool, inode); err != nil {
		t.Fatal(err)
	}
}

// wantKilledText checks the log, and empties it.
func (f *fixture) wantKilledText(t *testing.T, cut, n int) {
	t.Helper()
	want := []string{"stdout F one", "stdout F ", "stdout F two", "stdout F three"}
	if got := f.records(t); !slices.Equal(got, want) {
		t.Fatalf("cut at %d, killed at system call %d: the log is %q, want %q", cut, n, got, want)
	}
	if err := os.Truncate(f.log, 0); err != nil {
		t.Fatal(err)
	}
}
