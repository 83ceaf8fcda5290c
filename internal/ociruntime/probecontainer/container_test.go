package probecontainer

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// sleeper starts a process that waits for what does not come.
func sleeper(t *testing.T, arguments ...string) *exec.Cmd {
	t.Helper()
	return sleeperOf(t, append([]string{"sh", "-c", "read -r line", "sh"}, arguments...)...)
}

// sleeperOf is sleeper for a command that reads from its stdin.
func sleeperOf(t *testing.T, command ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	if _, err := cmd.StdinPipe(); err != nil { // Wait closes it
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// wantKilled waits for the end of a killed process.
func wantKilled(t *testing.T, what string, cmd *exec.Cmd) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Errorf("%s ended by itself", what)
		}
	case <-time.After(time.Minute):
		t.Errorf("%s lives", what)
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		t.Logf("it was killed: %v", <-ended)
	}
}

// TestSweep: everything of a probe container whose program was killed is removed, also by way of a symbolic link, and nothing else.
func TestSweep(t *testing.T) {
	privilege.Root(t)
	leakcheck.Check(t)
	dir := leakcheck.Dir(t)
	other := filepath.Join(dir, "parent/precious")
	if err := errors.Join(os.MkdirAll(other, 0o700), os.Symlink("parent", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(t.Context(), filepath.Join(dir, "missing")); err != nil {
		t.Errorf("of a directory that is not there: %v", err)
	}
	tr, err := New(filepath.Join(dir, "link"))
	if err != nil {
		t.Fatal(err)
	}
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	outside, inside := sleeper(t, "--root", tr.Root()), sleeper(t)
	// What has the arguments of the probe and is not the host's root is none of its processes.
	forged := sleeperOf(t, "unshare", "--pid", "--mount", "--fork", "--kill-child", "sh", "-c", "read -r line", "sh", "--root", tr.Root())
	for proc.IsHostRoot(forged.Process.Pid) { // until it has its namespaces
		if t.Context().Err() != nil {
			t.Fatal("it gets no namespaces")
		}
	}
	left, torn := filepath.Join(dir, "left"), filepath.Join(dir, "torn")
	if err := errors.Join(
		tr.Write(tr.Spec("", false)), host.Create("/"+tr.ID), host.AddProc("/"+tr.ID, inside.Process.Pid),
		os.WriteFile(left, nil, 0o600), os.WriteFile(torn, nil, 0o600), tr.Leaves(left), tr.Leaves(filepath.Join(dir, "never")),
	); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(tr.leavings(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(torn); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the end of a probe container has a deadline of its own
	for range 2 {
		if err := Sweep(ctx, filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
	}
	if stat, err := proc.Read(forged.Process.Pid); err != nil || stat.Dead() {
		t.Errorf("a process of another namespace that has the arguments of the probe: %v, state %c", err, stat.State)
	}
	if err := forged.Process.Kill(); err != nil {
		t.Error(err)
	}
	wantKilled(t, "the process in another namespace", forged)
	wantKilled(t, "the process outside", outside)
	wantKilled(t, "the process inside", inside)
	if host.Exists("/" + tr.ID) {
		t.Error("the cgroup is left")
	}
	for path, stays := range map[string]bool{tr.Dir: false, left: false, torn: true, other: true} {
		if _, err := os.Lstat(path); (err == nil) != stays {
			t.Errorf("%s: %v; it stays: %v", path, err, stays)
		}
	}
}
