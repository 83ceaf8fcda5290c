package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-runtime/berth/internal/config"
	"github.com/berth-runtime/berth/test/isolation"
	"github.com/berth-runtime/berth/test/leakcheck"
)

// What cannot be started with ends with the usage code and says what to change.
func TestBadSettingsAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("[log]\nlevel = \"info\"\ncolour = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"unknown_key":    {[]string{"--config", file}, []string{file + ":3", "colour"}},
		"missing_file":   {[]string{"--config", file + ".no"}, []string{file + ".no"}},
		"unknown_flag":   {[]string{"--colour"}, []string{"--colour"}},
		"argument":       {[]string{"start"}, []string{`"start"`}},
		"relative_root":  {[]string{"--root", "var"}, []string{"root", "var"}},
		"wrong_listener": {[]string{"--listen", "tcp://127.0.0.1:1"}, []string{"listen", "unix://"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := run(c.args, &out, &errs); code != exitUsage {
				t.Errorf("exit code %d, want %d", code, exitUsage)
			}
			for _, want := range c.want {
				if !strings.Contains(errs.String(), want) {
					t.Errorf("stderr %q lacks %q", errs.String(), want)
				}
			}
		})
	}
}

func TestFlagsWinOverTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	text := "root = \"/file/root\"\nstate = \"/file/state\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cfg, _, err := configure([]string{"--config", file, "--state", "/flag/state"}, &out, &out)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Root != "/file/root" || cfg.State != "/flag/state" || cfg.Listen != config.DefaultListen {
		t.Errorf("root %s, state %s, listen %s", cfg.Root, cfg.State, cfg.Listen)
	}
}

func TestHelpAndVersionEndWell(t *testing.T) {
	for _, flag := range []string{"--help", "--version"} {
		var out, errs bytes.Buffer
		if code := run([]string{flag}, &out, &errs); code != 0 || out.Len() == 0 || errs.Len() != 0 {
			t.Errorf("%s: code %d, stdout %q, stderr %q", flag, code, out.String(), errs.String())
		}
	}
}

// lockHelper names a directory which the test binary, run again, locks until its
// input ends: a lock belongs to a process.
const lockHelper = "BERTHD_TEST_LOCK"

func TestMain(m *testing.M) {
	dir := os.Getenv(lockHelper)
	if dir == "" {
		os.Exit(isolation.Main(m))
	}
	if _, err := lockDir(dir); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("locked")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// A directory has one daemon; the second learns which. The lock ends with its
// holder, killed or not, even while a child of it still has its descriptors.
func TestLockDirKeepsOthersOut(t *testing.T) {
	leakcheck.Check(t)
	dir := t.TempDir()
	first, said := lockElsewhere(t, dir)
	if said != "locked" {
		t.Fatalf("first daemon: %s", said)
	}
	file, err := lockDir(dir)
	if want := fmt.Sprintf("process ID %d:", first.Process.Pid); !errors.Is(err, errdefs.ErrAlreadyExists) || !strings.Contains(err.Error(), want) {
		t.Errorf("second daemon: %v, %v; want it refused with %q", file, err, want)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err == nil {
		t.Error("a killed process ended well")
	}
	file, err = lockDir(dir)
	if err != nil {
		t.Fatalf("after the first was killed: %v", err)
	}
	child := exec.CommandContext(t.Context(), "sleep", "1000")
	child.ExtraFiles = []*os.File{file}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	second, said := lockElsewhere(t, dir)
	if said != "locked" {
		t.Errorf("while a child has the descriptor: %s", said)
	}
	for _, p := range []*exec.Cmd{child, second} {
		if err := p.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = p.Wait() // it was killed
	}
}

// lockElsewhere locks dir in a process of its own and answers what that says.
func lockElsewhere(t *testing.T, dir string) (*exec.Cmd, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), lockHelper+"="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close() })
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(said)
}

func TestInstancesDiffer(t *testing.T) {
	if got := instanceOf(config.DefaultRoot + "/"); got != "" {
		t.Errorf("the default root is instance %q, want none", got)
	}
	a, b := instanceOf("/srv/a"), instanceOf("/srv/b")
	if a == b || len(a) != instanceLength {
		t.Errorf("instances %q and %q", a, b)
	}
}
