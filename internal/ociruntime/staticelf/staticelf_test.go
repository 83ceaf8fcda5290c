package staticelf

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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

func TestBothMachinesAreWellFormed(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		for name, programs := range map[string]map[string]program{"exit": exit, "pause": pause} {
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
