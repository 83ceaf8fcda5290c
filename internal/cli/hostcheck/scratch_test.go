package hostcheck

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// checkVariable makes TestKilledCheck a check that is to be killed.
const checkVariable = "BERTH_TEST_CHECK"

// TestKilledCheck kills checks at many instants while they try handlers. The next one removes what they have left:
// directories here, and mounts, cgroups and processes, which the leak check counts.
func TestKilledCheck(t *testing.T) {
	privilege.Root(t)
	if os.Getenv(checkVariable) != "" {
		var f facts
		f.runtimes(t.Context(), host(t), true)
		return
	}
	leakcheck.Check(t)
	tmp := leakcheck.Dir(t)
	t.Setenv("TMPDIR", tmp)
	var f facts
	var whole time.Duration
	for range 2 { // the first one may have to read the programs from a disk
		begun := time.Now()
		f.runtimes(t.Context(), host(t), true)
		whole = time.Since(begun)
	}
	const rounds = 6
	cutOff := map[string]bool{}
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledCheck$")
		cmd.Env = append(os.Environ(), checkVariable+"=1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(whole * time.Duration(round+1) / rounds) // the point of the test: many instants
		if err := cmd.Process.Kill(); err == nil {
			_ = cmd.Wait() // it was killed, or had ended
		}
		for _, path := range checks(t, tmp) {
			cutOff[path] = true
		}
	}
	t.Logf("%d checks were cut off", len(cutOff))
	if len(cutOff) == 0 {
		t.Error("no check was cut off: the test is not at the right time")
	}
	f.runtimes(t.Context(), host(t), true)
	if left := checks(t, tmp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// checks are the directories of checks.
func checks(t *testing.T, tmp string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(tmp, trialsPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestSweepSpares: the directory of a check that lives stays, and so do files that another program may have made.
func TestSweepSpares(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	tmp := leakcheck.Dir(t)
	t.Setenv("TMPDIR", tmp)
	live, err := newScratch(tmp, trialsPrefix)
	if err != nil {
		t.Fatal(err)
	}
	directory := func(name string, change func(path string) error) string {
		path := filepath.Join(tmp, trialsPrefix+name)
		if err := os.Mkdir(path, 0o711); err != nil {
			t.Fatal(err)
		}
		if err := change(path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	directory("dead", func(string) error { return nil })
	spared := []string{
		live.path,
		directory("foreign", func(path string) error { return os.Chown(path, 65534, 65534) }),
		directory("open", func(path string) error { return os.Chmod(path, 0o777) }), //nolint:gosec // that is what it is about
		filepath.Join(tmp, trialsPrefix+"link"),
	}
	if err := os.Symlink(live.path, spared[3]); err != nil {
		t.Fatal(err)
	}
	if err := sweepTrials(t.Context()); err != nil {
		t.Error(err)
	}
	for _, path := range spared {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("it is gone: %v", err)
		}
	}
	if left := checks(t, tmp); len(left) != len(spared) {
		t.Errorf("there are %v, want %v", left, spared)
	}
	if err := sweep(tmp, "", (*scratch).remove); err != nil || len(checks(t, tmp)) != len(spared) {
		t.Errorf("with all that is in them: %v, there are %v", err, checks(t, tmp))
	}
	if err := live.removeEmpty(); err != nil {
		t.Error(err)
	}
}
