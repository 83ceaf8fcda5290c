package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/test/harness"
)

// person is a user at a terminal who runs `berth`.
type person struct {
	n      *harness.Node
	master *os.File
	screen buffer
	cmd    *exec.Cmd
	// gone is closed when the terminal shows nothing more.
	gone chan struct{}
}

// sit runs a command line on a terminal of its own.
func sit(t *testing.T, n *harness.Node, width, height uint16, args ...string) *person {
	t.Helper()
	master, slave, err := openTerminal(width, height)
	if err != nil {
		t.Fatal(err)
	}
	p := &person{n: n, master: master, gone: make(chan struct{})}
	p.cmd = exec.CommandContext(t.Context(), n.Program("berth"), append([]string{"--endpoint", n.Config.Listen}, args...)...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := errors.Join(p.cmd.Start(), slave.Close()); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.gone)
		_, _ = io.Copy(&p.screen, master) // ends with EIO once the other side is closed
	}()
	return p
}

// openTerminal makes a pair of pseudo terminals.
func openTerminal(width, height uint16) (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(int(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}

func (p *person) types(t *testing.T, keys string) {
	t.Helper()
	if _, err := io.WriteString(p.master, keys); err != nil {
		t.Fatal(err)
	}
}

// leaves waits for the command to end and returns its exit code.
func (p *person) leaves(t *testing.T) int {
	t.Helper()
	err := p.cmd.Wait()
	<-p.gone
	if err := p.master.Close(); err != nil {
		t.Error(err)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// TestInteractive: a shell at a terminal has the size of that terminal, follows it, can be left and come back to, and
// its exit code is that of berth.
func TestInteractive(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	p := sit(t, n, 101, 33, "run", "-it", "--name", "shell", "--log-dir", n.Dir(), n.Image, "sh")
	p.screen.contains(n, "# ")
	p.types(t, "stty size\n")
	p.screen.contains(n, "33 101")
	if err := unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 155, Row: 44}); err != nil {
		t.Fatal(err)
	}
	n.Eventually("the shell has the new size", func() error {
		p.types(t, "stty size\n")
		if !strings.Contains(p.screen.String(), "44 155") {
			return fmt.Errorf("the screen shows %q", p.screen.String())
		}
		return nil
	})
	p.types(t, "\x10\x11") // Ctrl-P Ctrl-Q
	equal(t, "exit code of leaving", p.leaves(t), 0)
	p.screen.contains(n, "berth attach shell")

	p = sit(t, n, 80, 24, "attach", "shell")
	p.screen.contains(n, "# ")
	p.types(t, "exit 7\n")
	equal(t, "exit code of the shell", p.leaves(t), 7)
	if _, err := n.Berth(n.Context(), "rm", "shell"); err != nil {
		t.Error(err)
	}
}

// TestTerminalOutputIsComplete: what a container writes while berth attaches is shown all the same, once.
func TestTerminalOutputIsComplete(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	const lines = 300
	p := sit(t, n, 80, 24, "run", "--rm", "-it", "--log-dir", n.Dir(), n.Image,
		"sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line$i; done; exit 3", lines))
	equal(t, "exit code", p.leaves(t), 3)
	got := strings.Fields(p.screen.String())
	for i := range lines {
		if i >= len(got) || got[i] != fmt.Sprintf("line%d", i+1) {
			t.Fatalf("%d lines are shown, not line %d in its place:\n%q", len(got), i+1, p.screen.String())
		}
	}
	equal(t, "number of lines", len(got), lines)
}

// TestInterrupt: Ctrl-C stops the container, which may say goodbye, and --rm leaves nothing.
func TestInterrupt(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	p := sit(t, n, 80, 24, "run", "--rm", "--log-dir", n.Dir(), n.Image,
		"sh", "-c", "trap 'echo goodbye; exit 5' TERM; echo begun; while true; do sleep 0.1; done")
	p.screen.contains(n, "begun")
	p.types(t, "\x03")
	equal(t, "exit code", p.leaves(t), 5)
	if !strings.Contains(p.screen.String(), "goodbye") {
		t.Errorf("the last words are missing: %q", p.screen.String())
	}
	if left := sandboxes(t, n, nil); len(left) > 0 {
		t.Errorf("left after --rm: %v", left)
	}
	if logs, err := filepath.Glob(filepath.Join(n.Dir(), "default_*")); err != nil || len(logs) > 0 {
		t.Errorf("logs are left after --rm: %v (%v)", logs, err)
	}
}

// TestPipes: berth between pipes passes input, output, errors and exit codes on.
func TestPipes(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	run := []string{"run", "--rm", "-i", "--log-dir", n.Dir(), n.Image}
	if _, err := n.Berth(n.Context(), "run", "-d", "--name", "box", "--log-dir", n.Dir(), n.Image, "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		args     []string
		code     int
		out, err string
	}{
		{"run", append(run, "sh", "-c", "cat; echo err >&2; exit 9"), 9, "in\n", "err\n"},
		{"run_not_there", append(run, "nope"), 127, "", "nope"},
		{"run_not_runnable", append(run, "/etc/passwd"), 126, "", "ermission denied"},
		{"run_no_such_handler", append([]string{"run", "--runtime", "kata"}, run[1:]...), 125, "", `"kata" is not configured`},
		{"exec", []string{"exec", "-i", "box", "sh", "-c", "cat; echo err >&2; exit 9"}, 9, "in\n", "err\n"},
		{"exec_not_there", []string{"exec", "box", "nope"}, 127, "", "nope"},
		{"name_taken", []string{"run", "--name", "box", n.Image}, 125, "", "berth rm"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.CommandContext(n.Context(), n.Program("berth"), append([]string{"--endpoint", n.Config.Listen}, tc.args...)...)
			var out, errOut bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("in\n"), &out, &errOut
			err := cmd.Run()
			equal(t, "exit code", cmd.ProcessState.ExitCode(), tc.code)
			equal(t, "output", out.String(), tc.out)
			if !strings.Contains(errOut.String(), tc.err) {
				t.Errorf("errors are %q (%v), want %q in them", errOut.String(), err, tc.err)
			}
		})
	}
	if _, err := n.Berth(n.Context(), "rm", "-f", "box"); err != nil {
		t.Error(err)
	}
}

// TestVersions: programs that were built together say the same of themselves.
func TestVersions(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	out, err := n.Berth(n.Context(), "-o", "json", "version")
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ Client, Server, Runtime string }
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatal(err)
	}
	equal(t, "version of the daemon", v.Server, v.Client)
	equal(t, "name of the runtime", v.Runtime, "berth")
}

// TestFollowAcrossRestart: a person who follows a log does not notice that the daemon was killed and came back.
func TestFollowAcrossRestart(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Pull()
	if _, err := n.Berth(n.Context(), "run", "-d", "--name", "talker", "--log-dir", n.Dir(), n.Image,
		"sh", "-c", "i=0; while [ ! -e /tmp/end ]; do i=$((i+1)); echo $i; sleep 0.05; done; echo last; exit 4"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(n.Context(), n.Program("berth"), "--endpoint", n.Config.Listen, "logs", "-f", "talker")
	var out buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.contains(n, "3\n")
	n.KillDaemon()
	if _, err := n.Berth(n.Context(), "exec", "talker", "touch", "/tmp/end"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("logs -f ends with %v", err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, line := range lines[:len(lines)-1] {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
	equal(t, "last line", lines[len(lines)-1], "last")
	if _, err := n.Berth(n.Context(), "rm", "talker"); err != nil {
		t.Error(err)
	}
}
