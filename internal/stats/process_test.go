package stats

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-runtime/berth/internal/cgroup"
	"github.com/berth-runtime/berth/test/leakcheck"
	"github.com/berth-runtime/berth/test/privilege"
)

// TestReadProcesses counts the descriptors of a process in a nested cgroup.
func TestReadProcesses(t *testing.T) {
	privilege.Root(t)
	path := "/berth-test-" + strings.ToLower(rand.Text()[:10])
	leakcheck.Check(t, filepath.Base(path))
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if err := errors.Join(host.KillAll(ctx, path), host.Remove(path)); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	if err := host.Create(path + "/a"); err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := socket.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(socket.Close(), file.Close()); err != nil {
			t.Error(err)
		}
	}()
	cmd := exec.CommandContext(ctx, "/bin/sleep", "1000")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) {
			t.Errorf("sleep ended with %v", err)
		}
	})
	if err := host.AddProc(path+"/a", cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	got, err := ReadProcesses(ctx, host, path)
	if want := held(t, cmd.Process.Pid); err != nil || got != want || got.Descriptors < 4 || got.Sockets < 1 {
		t.Errorf("processes hold %+v (%v), want %+v with a socket", got, err, want)
	}
	var own unix.Rlimit
	if err := unix.Prlimit(cmd.Process.Pid, syscall.RLIMIT_NOFILE, nil, &own); err != nil {
		t.Fatal(err)
	}
	if got, err := OpenFilesLimit(cmd.Process.Pid); err != nil || got != own.Cur {
		t.Errorf("limit of open files is %d (%v), want %d", got, err, own.Cur)
	}
	gone, stop := context.WithCancel(ctx)
	stop()
	if _, err := ReadProcesses(gone, host, path); !errors.Is(err, context.Canceled) {
		t.Errorf("reading with a canceled context: %v, want canceled", err)
	}
}

// held counts the descriptors of a process in the plain way. The user that runs the
// test may have left it some.
func held(t *testing.T, pid int) Processes {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	p := Processes{Descriptors: uint64(len(links))}
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil {
			t.Fatal(err)
		} else if strings.HasPrefix(target, "socket:") {
			p.Sockets++
		}
	}
	return p
}

// TestProcessesThatEnded hold nothing and are no error.
func TestProcessesThatEnded(t *testing.T) {
	var p Processes
	if err := p.add("4194305"); err != nil || p != (Processes{}) {
		t.Errorf("a process that is not there: %+v, %v", p, err)
	}
	if got, err := OpenFilesLimit(4194305); err != nil || got != 0 {
		t.Errorf("its limit: %d, %v", got, err)
	}
}

// TestReadFilesystem compares with what the kernel says of the same path.
func TestReadFilesystem(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/proc"} {
		got, err := ReadFilesystem(path)
		if err != nil {
			t.Fatal(err)
		}
		var want unix.Statfs_t
		if err := unix.Statfs(path, &want); err != nil {
			t.Fatal(err)
		}
		if got.Device == "" || got.Disk.Name == "" || got.Bytes != want.Blocks*uint64(want.Bsize) || got.Inodes != want.Files {
			t.Errorf("%s: %+v, want a device, %d inodes and the size", path, got, want.Files)
		}
	}
	if _, err := ReadFilesystem("/nowhere/at/all"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("filesystem of nothing: %v, want that it does not exist", err)
	}
}

// TestDetect: this machine's own, and trees as they are on other hosts.
func TestDetect(t *testing.T) {
	root := t.TempDir()
	tree(t, root, map[string]string{
		"cgroup.controllers": "cpu io memory hugetlb pids\n", "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"system.slice/memory.peak": "1\n", "system.slice/hugetlb.2MB.current": "0\n",
	})
	got := Detect(parse(t, "1 1 0:1 / "+root+" rw - cgroup2 cgroup2 rw\n"))
	want := Abilities{CPU: true, Memory: true, IO: true, PIDs: true, MemoryPeak: true, Swap: true, Hugetlb: true, Pressure: true}
	if got != want {
		t.Errorf("v2: got %+v, want %+v", got, want)
	}
	root = t.TempDir()
	tree(t, root, map[string]string{"memory/memory.stat": "", "cpu/cpu.shares": "", "hugetlb/hugetlb.2MB.usage_in_bytes": "0\n",
		"hugetlb/hugetlb.2MB.max_usage_in_bytes": "0\n"})
	got = Detect(parse(t, "1 1 0:1 / "+root+"/cpu rw - cgroup cgroup rw,cpu,cpuacct\n2 1 0:1 / "+root+"/memory rw - cgroup cgroup rw,memory\n"+
		"3 1 0:1 / "+root+"/hugetlb rw - cgroup cgroup rw,hugetlb\n"))
	if want := (Abilities{CPU: true, Memory: true, MemoryPeak: true, Hugetlb: true, HugetlbPeak: true}); got != want {
		t.Errorf("v1: got %+v, want %+v", got, want)
	}
}
