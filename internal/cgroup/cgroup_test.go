package cgroup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/proc"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// testDeadline bounds every wait for the kernel in these tests.
const testDeadline = 30 * time.Second

// hosts are the trees that the tests run on: that of this machine, and the v2
// hierarchy on its own, below a cgroup of ours.
var hosts = []struct {
	name string
	open func(testing.TB) *Host
}{{"machine", machine}, {"unified", unifiedOnly}}

// each runs a test on every tree, in a cgroup of its own that is empty and
// gone afterwards.
func each(t *testing.T, run func(t *testing.T, host *Host, path string)) {
	for _, h := range hosts {
		t.Run(h.name, func(t *testing.T) {
			path := "/berth-test-" + strings.ToLower(rand.Text()[:10])
			leakcheck.Check(t, filepath.Base(path))
			host := h.open(t)
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
				defer cancel()
				if err := errors.Join(host.KillAll(ctx, path), host.Remove(path)); err != nil {
					t.Errorf("clean up: %v", err)
				}
			})
			run(t, host, path)
		})
	}
}

func machine(t testing.TB) *Host {
	host, err := Detect()
	if err != nil {
		t.Fatalf("Detect: %v", err)
	}
	return host
}

// unifiedOnly mounts the v2 hierarchy a second time and gives a host that
// knows only a new cgroup in it. No controller is offered there, so none is
// taken from the v1 hierarchies of the machine.
func unifiedOnly(t testing.TB) *Host {
	mount, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, os.Remove(mount)) })
	if err := unix.Mount("berth-test", mount, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount cgroup2 on %s: %v", mount, err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(mount, unix.MNT_DETACH)) })
	root := filepath.Join(mount, "berth-test-"+strings.ToLower(rand.Text()[:10]))
	if err := os.Mkdir(root, dirMode); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, os.Remove(root)) })
	host, err := Parse(strings.NewReader("1 1 0:1 / " + root + " rw - cgroup2 cgroup2 rw\n"))
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return host
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// start runs a command that waits until stdin closes, puts it into the cgroup
// and then lets it go on.
func start(t *testing.T, host *Host, path, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read go; "+script)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start sh: %v", err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("kill sh: %v", err)
		}
		if err := cmd.Wait(); err != nil {
			if _, ok := errors.AsType[*exec.ExitError](err); !ok {
				t.Errorf("wait for sh: %v", err)
			}
		}
	})
	if err := host.AddProc(path, cmd.Process.Pid); err != nil {
		check(t, cmd.Process.Kill())
		t.Fatalf("AddProc: %v", err)
	}
	if _, err := stdin.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testDeadline)
	t.Cleanup(cancel)
	return ctx
}

// TestLife makes a cgroup, uses it, and removes it: each step may be repeated
// and says the truth about processes.
func TestLife(t *testing.T) {
	privilege.Root(t)
	each(t, func(t *testing.T, host *Host, path string) {
		child := path + "/a/b"
		for range 2 {
			if err := host.Create(child); err != nil {
				t.Fatalf("Create: %v", err)
			}
		}
		for _, dir := range host.dirs(child) {
			if _, err := os.Stat(dir); err != nil {
				t.Errorf("after Create: %v", err)
			}
		}
		cmd := start(t, host, child, "exec sleep 1000")
		pids, err := host.Procs(path, true)
		if err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
			t.Fatalf("Procs: got %v, %v, want [%d]", pids, err, cmd.Process.Pid)
		}
		if pids, err := host.Procs(path, false); err != nil || len(pids) != 0 {
			t.Errorf("Procs, not recursive: got %v, %v, want none", pids, err)
		}
		if err := host.Remove(path); !errdefs.IsFailedPrecondition(err) || !host.Exists(child) {
			t.Errorf("Remove with a process: got %v, want a failed precondition", err)
		}
		for range 2 {
			if err := host.KillAll(deadline(t), path); err != nil {
				t.Fatalf("KillAll: %v", err)
			}
		}
		for range 2 {
			if err := host.Remove(path); err != nil {
				t.Fatalf("Remove: %v", err)
			}
		}
		if host.Exists(path) {
			t.Error("the cgroup exists after Remove")
		}
	})
}

// TestAbsent asks about a cgroup that does not exist.
func TestAbsent(t *testing.T) {
	privilege.Root(t)
	each(t, func(t *testing.T, host *Host, path string) {
		if _, err := host.Procs(path, true); !errdefs.IsNotFound(err) {
			t.Errorf("Procs: got %v, want not found", err)
		}
		if _, err := host.OOMKills(path); host.Has("memory") && !errdefs.IsNotFound(err) {
			t.Errorf("OOMKills: got %v, want not found", err)
		}
		if _, err := host.Limits(path); !errdefs.IsNotFound(err) {
			t.Errorf("Limits: got %v, want not found", err)
		}
		for _, path := range []string{path, path + "/" + strings.Repeat("x", 300)} { // the kernel has no name as long as that
			if err := errors.Join(host.KillAll(deadline(t), path), host.Remove(path)); err != nil {
				t.Errorf("KillAll and Remove: got %v, want nil", err)
			}
		}
	})
}

// TestRoot refuses paths that mean more than one cgroup.
func TestRoot(t *testing.T) {
	host := machine(t)
	for _, path := range []string{"", "/", "a", "/a/..", "/a/../..", "/a/"} {
		_, procs := host.Procs(path, false)
		for what, err := range map[string]error{
			"Create": host.Create(path), "Remove": host.Remove(path), "Procs": procs,
			"KillAll": host.KillAll(t.Context(), path), "AddProc": host.AddProc(path, 1),
		} {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s(%q): got %v, want an invalid argument", what, path, err)
			}
		}
	}
}

// TestKillFrozen kills processes that are frozen, as a paused container is.
func TestKillFrozen(t *testing.T) {
	privilege.Root(t)
	each(t, func(t *testing.T, host *Host, path string) {
		if err := host.Create(path + "/a"); err != nil {
			t.Fatal(err)
		}
		cmd := start(t, host, path+"/a", "exec sleep 1000")
		if err := host.setFrozen(path, true); err != nil {
			t.Fatalf("freeze: %v", err)
		}
		if err := host.KillAll(deadline(t), path); err != nil {
			t.Fatalf("KillAll: %v", err)
		}
		if pids, err := host.Procs(path, true); err != nil || len(pids) != 0 {
			t.Errorf("after KillAll: got %v, %v, want no process (%d was there)", pids, err, cmd.Process.Pid)
		}
	})
}

// TestKillForking kills processes that fork all the time.
func TestKillForking(t *testing.T) {
	privilege.Root(t)
	each(t, func(t *testing.T, host *Host, path string) {
		if err := host.Create(path); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			start(t, host, path, "while true; do sleep 0.001 & wait; done")
		}
		if err := host.KillAll(deadline(t), path); err != nil {
			t.Fatalf("KillAll: %v", err)
		}
		if pids, err := host.Procs(path, true); err != nil || len(pids) != 0 {
			t.Errorf("after KillAll: got %v, %v, want no process", pids, err)
		}
	})
}

// TestKillSignals runs the way without cgroup.kill on the v2 tree as well.
func TestKillSignals(t *testing.T) {
	privilege.Root(t)
	each(t, func(t *testing.T, host *Host, path string) {
		if err := host.Create(path); err != nil {
			t.Fatal(err)
		}
		start(t, host, path, "sleep 1000 & sleep 1000")
		if err := host.killLegacy(deadline(t), path); err != nil {
			t.Fatalf("killLegacy: %v", err)
		}
		if pids, err := host.Procs(path, true); err != nil || len(pids) != 0 {
			t.Errorf("after killLegacy: got %v, %v, want no process", pids, err)
		}
	})
}

// TestKillDeadline gives up when the context ends: the wait must not outlive
// the call.
func TestKillDeadline(t *testing.T) {
	privilege.Root(t)
	each(t, func(t *testing.T, host *Host, path string) {
		if err := host.Create(path); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start(t, host, path, "exec sleep 1000")
		err := host.KillAll(ctx, path)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("KillAll: got %v, want nil or %v", err, context.Canceled)
		}
	})
}

// TestOOMKills has the kernel kill a process that wants more memory than its
// cgroup has, in a cgroup below the one that is asked about.
func TestOOMKills(t *testing.T) {
	privilege.Root(t)
	path := "/berth-test-" + strings.ToLower(rand.Text()[:10])
	leakcheck.Check(t, filepath.Base(path))
	host := machine(t)
	if !host.Has("memory") {
		t.Fatal("this test needs a memory controller: boot without cgroup_disable=memory")
	}
	t.Cleanup(func() { check(t, errors.Join(host.KillAll(context.Background(), path), host.Remove(path))) })
	if err := host.Create(path + "/a"); err != nil {
		t.Fatal(err)
	}
	dir, _ := host.Dir("memory", path+"/a")
	files := []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}
	if host.Mode == V2 {
		files = []string{"memory.max"}
	}
	for _, file := range files {
		if err := writeString(filepath.Join(dir, file), fmt.Sprint(16<<20)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	limits, err := host.Limits(path + "/a")
	if err != nil || limits.MemoryBytes == nil || *limits.MemoryBytes != 16<<20 {
		t.Errorf("Limits: got %+v, %v, want 16 MiB of memory", limits, err)
	}
	if kills, err := host.OOMKills(path); err != nil || kills != 0 {
		t.Fatalf("OOMKills before: got %d, %v, want 0", kills, err)
	}
	cmd := start(t, host, path+"/a", "exec tail /dev/zero")
	if err := proc.AwaitEnd(deadline(t), pidfd(t, cmd.Process.Pid)); err != nil {
		t.Fatalf("wait for the OOM killer: %v", err)
	}
	if kills, err := host.OOMKills(path); err != nil || kills != 1 {
		t.Errorf("OOMKills: got %d, %v, want 1", kills, err)
	}
}

func pidfd(t *testing.T, pid int) *os.File {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("pidfd_open: %v", err)
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { check(t, file.Close()) })
	return file
}

// TestCpuset puts a process into a new cgroup of a new cgroup: on v1 both
// would be without CPUs at first.
func TestCpuset(t *testing.T) {
	privilege.Root(t)
	each(t, func(t *testing.T, host *Host, path string) {
		if err := host.Create(path + "/a/b"); err != nil {
			t.Fatal(err)
		}
		dir, ok := host.Dir("cpuset", path+"/a/b")
		if !ok || host.Mode == V2 {
			return
		}
		root, _ := host.Dir("cpuset", "/")
		want, err := readString(filepath.Join(root, "cpuset.cpus"))
		check(t, err)
		if got, err := readString(filepath.Join(dir, "cpuset.cpus")); err != nil || got != want {
			t.Errorf("cpuset.cpus: got %q, %v, want %q", got, err, want)
		}
	})
}
