package staticelf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-runtime/berth/test/privilege"
)

// run starts a program whose stdin is what the test gives it.
func run(t *testing.T, program []byte, stdin string) (*exec.Cmd, func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte(stdin)); err != nil {
		t.Fatal(err)
	}
	return cmd, func() { in.Close() }
}

func TestExitEnds(t *testing.T) {
	program, err := Exit()
	if err != nil {
		t.Fatal(err)
	}
	cmd, closeStdin := run(t, program, "")
	defer closeStdin()
	if err := cmd.Wait(); err != nil {
		t.Errorf("got %v", err)
	}
}

// TestPauseNeedsAWord: without a byte on stdin it ends, with one it outlives its stdin.
func TestPauseNeedsAWord(t *testing.T) {
	privilege.Root(t)
	program, err := Pause()
	if err != nil {
		t.Fatal(err)
	}
	cmd, closeStdin := run(t, program, "")
	closeStdin()
	var ended *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ended) || ended.ExitCode() != 1 {
		t.Errorf("without a word: got %v", err)
	}
	cmd, closeStdin = run(t, program, "x")
	closeStdin()
	for {
		name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", cmd.Process.Pid))
		if errors.Is(err, os.ErrNotExist) {
			break // it has taken the byte and closed stdin
		}
		if err != nil {
			t.Fatalf("stdin %s: %v", name, err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("with a word: got %v", err)
	}
}

// TestWaitNeedsNothing: it goes on without a stdin, and leaves no child a zombie.
func TestWaitNeedsNothing(t *testing.T) {
	program, err := Wait()
	if err != nil {
		t.Fatal(err)
	}
	cmd, closeStdin := run(t, program, "")
	closeStdin()
	for start, ignores := time.Now(), false; !ignores; {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		if err != nil || strings.Contains(string(status), "(zombie)") {
			t.Fatalf("it has ended: %v", err)
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("it does not ignore the end of children:\n%s", status)
		}
		ignores = ignored(t, string(status))&(1<<(syscall.SIGCHLD-1)) != 0
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("got %v", err)
	}
}

// ignored is the set of signals that a process ignores, some of which it may have inherited.
func ignored(t *testing.T, status string) (set uint64) {
	t.Helper()
	_, rest, _ := strings.Cut(status, "SigIgn:")
	if _, err := fmt.Sscanf(rest, "%x", &set); err != nil {
		t.Fatalf("ignored signals: %v in\n%s", err, status)
	}
	return set
}

func TestBothMachinesAreWellFormed(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		for name, programs := range map[string]map[string]program{"exit": exit, "pause": pause, "wait": wait, "enter": enter(7, 9)} {
			text, err := build(programs, arch)
			if err != nil {
				t.Fatal(err)
			}
			file, err := elf.NewFile(bytes.NewReader(text))
			if err != nil || file.Machine != machine || len(file.Progs) != 1 {
				t.Errorf("%s for %s: %v %+v", name, arch, err, file)
			}
		}
	}
	if _, err := build(exit, "vax"); err == nil {
		t.Error("a program for an unknown machine")
	}
}

// TestEnterLeavesASibling: in a user namespace it leaves a child of ours behind, the first process of a PID namespace that
// the user namespace owns, as the user that was asked for, without capabilities.
func TestEnterLeavesASibling(t *testing.T) {
	privilege.Root(t)
	program, err := Enter(7, 9)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	user := userNamespace(t)
	answer, say, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Close()
	cmd := exec.Command(path)
	cmd.ExtraFiles = []*os.File{user, say}
	stdin, word, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	defer word.Close()
	cmd.Stdin = stdin
	if err := cmd.Run(); err != nil {
		t.Fatalf("enter: %v", err)
	}
	if err := say.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(answer) // until the sibling has closed its end
	if err != nil || len(raw) != 4 {
		t.Fatalf("got %v, %v, want 4 bytes", raw, err)
	}
	pid := int(binary.NativeEndian.Uint32(raw))
	defer func() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			t.Errorf("it is no child of ours: %v", err)
		}
	}()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%[1]d\t%[1]d", 11<<16+7), fmt.Sprintf("Gid:\t%[1]d\t%[1]d", 11<<16+9),
		"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", fmt.Sprintf("NSpid:\t%d\t1", pid),
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status has no %q:\n%s", want, status)
		}
	}
}

// userNamespace is one that a process was born in which is gone by now.
func userNamespace(t *testing.T) *os.File {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	ids := []syscall.SysProcIDMap{{HostID: 11 << 16, Size: 1 << 16}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	user, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return user
}
