package isolation

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-runtime/berth/test/privilege"
)

// role makes the test binary a process that isolates itself and does something.
const role = "BERTH_ISOLATION_TEST_ROLE"

func TestMain(m *testing.M) {
	if do := os.Getenv(role); do != "" {
		os.Exit(play(do))
	}
	os.Exit(Main(m))
}

func play(do string) int {
	pid := os.Getpid()
	if !Active() {
		fmt.Println(pid)
	}
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cwd, err := os.Getwd()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	switch do {
	case "report":
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		_, other := os.Stat("/tmp/berth-other-program")
		fmt.Println(pid, cwd, strings.Join(os.Args[1:], " "), strings.TrimSpace(line), err, os.Getenv("TMPDIR"), errors.Is(other, os.ErrNotExist))
		return Leave(7)
	case "leave-file":
		if err := os.WriteFile("/tmp/left", nil, 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return Leave(0)
}

// run runs the test binary in a role, in a directory of this process's /tmp, and returns what it writes.
func run(t *testing.T, do, dir, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env, cmd.Dir, cmd.Stdin = append(Outside(), role+"="+do, "TMPDIR="+dir, "PWD="+dir), dir, strings.NewReader(stdin)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestProcessStaysTheSame: the isolated process has the PID, arguments, working directory, input and exit code that the
// go command gave or expects, and another program's files are not in its /tmp.
func TestProcessStaysTheSame(t *testing.T) {
	privilege.Root(t)
	dir := t.TempDir()
	other := "/tmp/berth-other-program"
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(other); err != nil {
			t.Error(err)
		}
	})
	stdout, stderr, code := run(t, "report", dir, "a line\n", "-test.v", "an argument")
	pid, report, _ := strings.Cut(stdout, "\n")
	want := fmt.Sprintf("%s %s -test.v an argument a line <nil>  true\n", pid, dir)
	if report != want || code != 7 {
		t.Errorf("isolated process says %q, exit code %d, want %q, 7: %s", report, code, want, stderr)
	}
	if left, err := filepath.Glob(filepath.Join(dir, prefix+"*")); err != nil || len(left) > 0 {
		t.Errorf("directories of /tmp after the end: %v (%v), want none", left, err)
	}
}

// TestFilesInTmpFail: a file that the tests of a package leave in /tmp fails it, and is removed.
func TestFilesInTmpFail(t *testing.T) {
	privilege.Root(t)
	dir := t.TempDir()
	_, stderr, code := run(t, "leave-file", dir, "")
	if code != 1 || !strings.Contains(stderr, "the tests leave files in /tmp: /tmp/left\n") {
		t.Errorf("exit code %d, %q, want 1 and the file", code, stderr)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("files after the end: %v (%v), want none", left, err)
	}
}

// TestEntriesOf: what arguments, environment and working directory name stays visible.
func TestEntriesOf(t *testing.T) {
	got := entriesOf("/tmp", []string{
		"/tmp/go-build1/b001/x.test", "-test.testlogfile=/tmp/go-build1/b001/testlog.txt", "PATH=/bin:/tmp/tools/bin:/tmp",
		"/tmpother/x", "TMPDIR=/tmp/", "GOCACHE=/tmp/../tmp/cache", "/var/tmp/x",
	})
	if want := []string{"cache", "go-build1", "tools"}; !slices.Equal(got, want) {
		t.Errorf("entries are %v, want %v", got, want)
	}
}
